"""What crosses the wire, without a model."""
