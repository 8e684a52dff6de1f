"""KV pages below the pool: objects named by content, in a directory or in host memory."""
