"""The stages from a recipe to a report, a file each; `order.py` says in which order they run."""
