"""Ways to merge heads compared: one plan, one text, the closed form beside what the field does."""
