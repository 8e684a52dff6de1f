"""From a command line to a server that listens, and to its end."""
