"""A recipe's texts."""
