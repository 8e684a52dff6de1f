"""One module a command; `pipeline/cli.py` holds the table."""
