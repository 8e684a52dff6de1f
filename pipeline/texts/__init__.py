"""A recipe's texts as token sequences: read from files, or written by the model itself."""
