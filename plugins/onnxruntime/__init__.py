"""ONNX Runtime's C ABI with a thin C++ layer over it, and libraries of ops that are compiled against it."""
