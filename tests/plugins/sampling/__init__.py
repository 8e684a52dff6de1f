"""The reference of sampling."""
