"""The CPU kernels against their references."""
