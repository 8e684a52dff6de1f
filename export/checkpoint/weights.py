"""Weights that stay in their file until someone asks: a model larger than memory can still be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS
from kvfold.plugins.contract.errors import CheckpointError

Shape = tuple[int, ...]
HEAD = "lm_head.weight"
# What may stand before the names that a causal model has: in a multimodal one, or what torch.compile adds.
# A model without its head stores no `model.`.
PREFIXES = ("_orig_mod.", "model.language_model.", "language_model.")


class LazyWeights(Mapping[str, Tensor]):
    """Hugging Face names to float32 tensors; each access reads (and dequantises) afresh, nothing is kept.

    Attributes:
        identity: path, size and time of the files: weights with the same ones are the same.

    Raises:
        CheckpointError: on access, a tensor cannot be read or holds NaN or infinity.
    """

    def __init__(
        self, source: str, readers: Mapping[str, Callable[[], Tensor]], files: Collection[Path]
    ) -> None:
        """`files` are all that decide the tensors; `source` is named in errors."""
        self._source = source
        self._readers = readers
        self.identity = tuple(
            (str(path.resolve()), status.st_size, status.st_mtime_ns)
            for path, status in ((path, path.stat()) for path in sorted(files))
        )

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._readers[name]()
        if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):  # NaN is both ends
            raise CheckpointError(
                f"{self._source}: tensor {name} holds NaN or infinity; fetch the file again"
            )
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of an unfolded checkpoint, by Hugging Face name."""
    hidden, middle, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer: dict[str, Shape] = {
        **{f"{norm}.weight": (hidden,) for norm in BLOCK_NORMS[config.norm_placement].present},
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.gate_proj.weight": (middle, hidden),
        "mlp.up_proj.weight": (middle, hidden),
        "mlp.down_proj.weight": (hidden, middle),
    }
    if config.attention_bias:
        sizes = {"q": query, "k": key, "v": key}
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}
    if config.output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if config.mlp_bias:
        sizes = {"gate": middle, "up": middle, "down": hidden}
        layer |= {f"mlp.{name}_proj.bias": (size,) for name, size in sizes.items()}
    if config.qk_norm:
        sizes = {"q": query, "k": key} if config.qk_norm == "projection" else dict.fromkeys("qk", head_dim)
        layer |= {f"self_attn.{name}_norm.weight": (size,) for name, size in sizes.items()}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def canonical_name(stored: str, expected: Collection[str]) -> str:
    """The expected name of a stored tensor, with or without prefixes; an unexpected one keeps its own."""
    name = stored
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return next((each for each in (stored, name, f"model.{name}") if each in expected), stored)


def check_shapes(source: str, found: Mapping[str, Shape], config: ModelConfig) -> None:
    """Hold the tensors of `source` against its config.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape; the first few are named.
    """
    expected = expected_shapes(config)
    missing = expected.keys() - found.keys()
    if missing == {HEAD}:
        raise CheckpointError(
            f"{source}: there is no {HEAD}, and its config does not tie the embeddings. If the head is the "
            'embedding, as in many small models, the config lacks "tie_word_embeddings": true; else fetch '
            "the checkpoint again, with its head"
        )
    if missing:
        raise CheckpointError(
            f"{source}: missing {_name_some(missing)}; it holds {_name_some(found) if found else 'nothing'}. "
            "Fetch the checkpoint again"
        )
    if unexpected := found.keys() - expected.keys():
        raise CheckpointError(
            f"{source}: unexpected {_name_some(unexpected)}; family {config.family} does not have them, "
            "so this model computes something that kvfold would drop"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"{source}: tensor {name} has shape {tuple(found[name])}, its config promises {shape}"
            )


def _name_some(names: Collection[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return f"{'tensor' if len(listed) == 1 else 'tensors'} {', '.join(listed[:3])}{more}"
