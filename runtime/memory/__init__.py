"""KV memory: page pools, sequences' block tables, the radix tree, and the laws that hold between them."""
