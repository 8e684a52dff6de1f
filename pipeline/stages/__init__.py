"""The stages from a recipe to a report, a file each; engines' in `engine/`; `order.py` has their order."""
