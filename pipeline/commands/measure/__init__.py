"""Commands that measure a bundle, or several."""
