"""A recipe's texts as token sequences."""
