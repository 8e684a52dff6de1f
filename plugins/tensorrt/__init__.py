"""PagedAttention as a TensorRT plugin (IPluginV3), in Python and in C++, over the same prebuilt cubins."""
