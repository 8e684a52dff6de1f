"""The report of a bundle: results.json for programs, pages for people."""
