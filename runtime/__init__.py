"""Drive a built engine from Python: KV memory, radix tree, scheduler, sampling, sessions.

Needs numpy, onnxruntime and tokenizers only; torch is never imported.
"""
