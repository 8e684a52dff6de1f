"""Who gets in, and how much at once."""
