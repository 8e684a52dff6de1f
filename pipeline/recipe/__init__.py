"""The recipe: one YAML file that decides everything about a bundle."""
