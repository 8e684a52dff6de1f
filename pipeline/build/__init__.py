"""An engine's folder, a module a backend."""
