"""A bundle in the making: what stages share, and how their files are put in place."""
