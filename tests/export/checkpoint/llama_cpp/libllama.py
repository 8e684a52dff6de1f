"""The few functions of llama.cpp's library that the tests call, through llama-cpp-python's ctypes."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


class LibLlama:
    """One loaded library."""

    def __init__(self, source: Path) -> None:
        """`source` is `vendor/llama.cpp` of the sdist, built into its folder `build`."""
        package = ModuleType("llama_cpp")  # its own __init__ wants packages that nobody needs here
        package.__path__ = [str(source.parent.parent / "llama_cpp")]
        sys.modules["llama_cpp"] = package
        os.environ["LLAMA_CPP_LIB_PATH"] = str(source / "build" / "bin")
        self._api: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._silent = self._api.llama_log_callback(lambda level, text, data: None)
        self._api.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._api.llama_backend_init()

    @contextmanager
    def model(self, path: Path, *, vocab_only: bool = False) -> Iterator[Any]:
        """A loaded file."""
        params = self._api.llama_model_default_params()
        params.vocab_only, params.n_gpu_layers = vocab_only, 0
        model = self._api.llama_model_load_from_file(str(path).encode(), params)
        assert model, f"llama.cpp does not load {path}"
        yield model
        self._api.llama_model_free(model)

    def encode(self, model: Any, text: str) -> list[int]:
        """Tokens, control tokens among them where the text spells them."""
        data = text.encode()
        room = (self._api.llama_token * (len(data) + 16))()
        vocab = self._api.llama_model_get_vocab(model)
        count = self._api.llama_tokenize(vocab, data, len(data), room, len(room), False, True)
        assert count >= 0
        return list(room[:count])

    def decode(self, model: Any, tokens: Sequence[int]) -> bytes:
        """The pieces of tokens put together."""
        vocab, piece = self._api.llama_model_get_vocab(model), ctypes.create_string_buffer(512)
        sizes = (self._api.llama_token_to_piece(vocab, token, piece, 512, 0, True) for token in tokens)
        return b"".join(piece.raw[:size] for size in sizes)

    def logits(self, path: Path, tokens: Sequence[int]) -> np.ndarray:
        """Logits of all positions, [len(tokens), vocab_size], with a cache in float32."""
        with self.model(path) as model:
            params = self._api.llama_context_default_params()
            params.n_ctx = params.n_batch = params.n_ubatch = 256
            params.n_threads = params.n_threads_batch = 1
            params.type_k = params.type_v = params.flash_attn_type = 0  # float32; no flash attention
            context = self._api.llama_init_from_model(model, params)
            batch = self._api.llama_batch_init(len(tokens), 0, 1)
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.logits[at] = token, at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            assert self._api.llama_decode(context, batch) == 0
            size = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))
            rows = [
                np.ctypeslib.as_array(self._api.llama_get_logits_ith(context, at), shape=(size,)).copy()
                for at in range(len(tokens))
            ]
            self._api.llama_batch_free(batch)
            self._api.llama_free(context)
        return np.stack(rows)

    def quantize(self, source: Path, target: Path, kind: str) -> None:
        """A file in another type, by llama.cpp's name of it; `ALL_F32` dequantises."""
        params = self._api.llama_model_quantize_default_params()
        params.nthread, params.allow_requantize = 1, True
        params.ftype = getattr(self._api, f"LLAMA_FTYPE_{kind}")
        paths = str(source).encode(), str(target).encode()
        assert self._api.llama_model_quantize(*paths, ctypes.byref(params)) == 0
