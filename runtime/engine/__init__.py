"""Engines: whatever executes one step of a folded model. Same file names for every backend."""
