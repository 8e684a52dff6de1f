"""What outlives a server: its conversations and their pages."""
