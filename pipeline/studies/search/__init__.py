"""`kvfold plan`: search a plan by measurement and write it as a recipe."""
