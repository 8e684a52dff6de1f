"""Doctor and monitor."""
