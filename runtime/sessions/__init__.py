"""Conversations on disk: what a session is, apart from its pages, for another process to go on with."""
