"""The server over scripted models."""
