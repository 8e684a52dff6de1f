"""Clients of others, as they are: each script is theirs to run, against any server."""
