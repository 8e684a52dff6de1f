"""The TensorRT engine over a stand-in of its library and driver."""
