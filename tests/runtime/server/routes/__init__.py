"""The APIs over a scripted model."""
