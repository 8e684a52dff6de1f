"""The HTTP server: raw ASGI over AsyncLLM; needs the extra `kvfold[serve]`."""
