"""The shipped recipes on a tiny random model, with small texts; a plan keeps each kind of its layers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from kvfold.pipeline.recipe.recipe_files import SHIPPED
from tests.export.tiny_checkpoints import random_model, write_folder

LAYERS, HEADS, KV_HEADS = 8, 9, 3  # the heads of SmolLM2-135M, as every written plan; it has 30 layers
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
TEXT = {"source": "text.txt", "tokens": 512, "sequence_length": 128}
# In place of the shipped recipes' own texts and sizes.
SMALL: dict[str, Any] = {
    "model": {"source": "model"},
    "calibration": TEXT,
    "validate": {
        **TEXT,
        "tokens": 256,
        "prefill_chunk": 64,
        "thresholds": {"max_perplexity_ratio": None, "max_engine_kl": None},
    },
    "evaluate": {
        **TEXT,
        "lengths": [64, 128],
        "kl_tokens": 256,
        "retrieval": {"lengths": [256], "depths": [0.5], "trials": 1, "keys": 2},
        "last_words": "words.txt",
    },
    "search": {
        "text": {**TEXT, "tokens": 384},
        "sliding_windows": [64],
        "kl_tokens": 128,
        "prompts": 1,
        "prompt_length": 256,
        "measured_window": 64,
        "plans": 1,
    },
}
HEAL = {"layerwise_tokens": 0, "tokens": 128, "text": TEXT}


def write_tiny_shipped(folder: Path) -> list[str]:
    """Write every shipped recipe anew, and what they name; their names."""
    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    model = random_model("llama", **shape, max_position_embeddings=2048, initializer_range=0.1)
    write_folder(folder / "model", model)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    words = random.Random(0).choices(("a", "cab", "folded", "tab"), k=4000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "words.txt").write_text("a cab and a tab and a cab\nwe saw a bat, and it was a bat.\n")
    names = [path.stem for path in sorted(SHIPPED.glob("*.yaml"))]
    for name in names:
        shipped = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
        adapted = {key: SMALL.get(key, value) for key, value in shipped.items() if key != "heal"}
        if "layers" in adapted["plan"]:
            adapted["plan"] = {"layers": thin(adapted["plan"]["layers"])}
        write_recipe(folder / f"{name}.yaml", {**SMALL, **adapted})
    return names


def thin(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`LAYERS` of a plan's layers: the first bank of each kind, then whichever banks fit, in their order."""
    banks: dict[int, list[dict[str, Any]]] = {}
    for layer in layers:
        banks.setdefault(layer["donor"], []).append(layer)
    first_of_kind = {str(bank[0] | {"donor": 0}): donor for donor, bank in reversed(banks.items())}
    kept: list[int] = []
    for donor in [*first_of_kind.values(), *banks]:
        if donor not in kept and sum(len(banks[each]) for each in (*kept, donor)) <= LAYERS:
            kept.append(donor)
    assert set(first_of_kind.values()) <= set(kept), "the plan has more kinds of layers than fit"
    thinned: list[dict[str, Any]] = []
    for donor in sorted(kept):
        thinned += [{**layer, "donor": len(thinned)} for layer in banks[donor]]
    assert len(thinned) == LAYERS
    return thinned


def write_recipe(path: Path, content: dict[str, Any]) -> None:
    """A recipe as a file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
