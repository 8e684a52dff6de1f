"""What the steps of healing minimise."""
