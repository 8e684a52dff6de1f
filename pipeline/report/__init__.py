"""The report of a bundle: results.json for programs, index.html for people, tables for the terminal."""
