"""Tests of the op for ONNX Runtime's CUDA provider that need no GPU."""
