"""The TensorRT plugin in C++."""
