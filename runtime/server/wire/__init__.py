"""What crosses the wire: bodies of requests into our values, results into bodies and events. No I/O."""
