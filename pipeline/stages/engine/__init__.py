"""The stages that build an engine, a file a backend."""
