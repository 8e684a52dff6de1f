"""The attention op for GPUs in Triton, a kernel a file, and what they share."""
