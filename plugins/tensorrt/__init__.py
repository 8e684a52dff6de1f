"""PagedAttention as a TensorRT plugin (IPluginV3): a part of the library that plugins/cuda compiles to."""
