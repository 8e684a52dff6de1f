"""The stages from a recipe to a report."""
