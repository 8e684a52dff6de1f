"""Build TensorRT plans: lower, compile kernels, build in a process of its own, check its log, keep facts."""
