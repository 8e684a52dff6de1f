"""The page and its data."""
