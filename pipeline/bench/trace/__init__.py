"""What the real scheduler and memory find again on a trace of requests, beside ideal caches."""
