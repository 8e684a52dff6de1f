"""Handlers: a request of an API, through the model, to its answer."""
