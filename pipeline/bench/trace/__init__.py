"""Hit rates of the real scheduler and memory on a trace of requests, beside ideal caches; nothing is computed."""
