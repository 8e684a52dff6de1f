"""The TensorRT engine: plans of `tensorrt` and `tensorrt_rtx` with kvfold's attention plugin.

Importing these modules needs neither library nor GPU; opening an engine does. Nothing here was run on a GPU
where it was written: the host's logic is tested against a recording stand-in of the driver and the library.
"""
