"""Running stages, and writing bundles."""
