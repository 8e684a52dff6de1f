"""lm-evaluation-harness's tasks on a bundle: the adapter, and what answers its requests."""
