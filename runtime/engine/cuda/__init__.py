"""An NVIDIA GPU through its driver: one device and stream, and KV pools in its virtual memory."""
