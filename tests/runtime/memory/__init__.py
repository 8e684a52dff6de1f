"""KV memory."""
