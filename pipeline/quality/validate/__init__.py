"""Compare the original, the folded model and the engine over the same tokens, on polygraphy's Comparator."""
