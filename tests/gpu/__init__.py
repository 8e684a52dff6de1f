"""What only a GPU can show; each skip says what it would have shown."""
