"""The page at /ui, and the stream of snapshots that it shows."""
