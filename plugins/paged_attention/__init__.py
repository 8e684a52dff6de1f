"""PagedAttention: one op module with its schema, reference, input generator and tolerances."""
