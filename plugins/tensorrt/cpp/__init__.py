"""PagedAttention as a TensorRT plugin in C++, for engines that run without Python; see CMakeLists.txt."""
