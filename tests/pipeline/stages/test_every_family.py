"""A tiny random checkpoint of every family, from its folder to tokens: as it is, and folded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfold import LLM, SamplingParams
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import open_bundle
from tests.export.tiny_checkpoints import CLASSES, random_model, write_folder
from tests.pipeline.tiny_bundles import TEMPLATE, WORDS, run_recipe

LAYERS = 3
# Beside what a random model of a family has: windows where its checkpoints may have them, odd RoPEs.
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 64},
    "qwen2": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
    "phi3": {
        "sliding_window": 48,
        "hidden_size": 64,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.5] * 6},
    },
}
RECIPE = """
model: {source: model}
plan: {preset: %s, sliding_window: 32, sink_size: 0, global_every: 3}
calibration: {source: text.txt, tokens: 256, sequence_length: 64}
quantize: {linears: %s}
"""
QUESTION = "a cab of the folded cache " * 4
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=CLASSES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and its recipes; all heads are kept where a norm of keys forbids less."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = random_model(name, num_hidden_layers=LAYERS, **CHANGES.get(name, {}))
    write_folder(folder / "model", model)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "text.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=4000)))
    normed = load_checkpoint(str(folder / "model")).config.qk_norm
    (folder / "own.yaml").write_text(RECIPE % ("identity", "none"))
    (folder / "folded.yaml").write_text(RECIPE % ("horizon" if normed else "character", "int8"))
    return folder


def test_the_float_engine_says_what_pytorch_says_over_the_window_s_edge(family: Path) -> None:
    run_recipe(family, "own", family / "own", until=target_stage("build", "cpu"))
    checkpoint = load_checkpoint(str(family / "model"))
    plan = FoldPlan.of(checkpoint.config.attention_shape)
    assert open_bundle(family / "own").plan == plan
    llm = LLM.load(family / "own")
    prompt = checkpoint.tokenizer.backend.encode(QUESTION).ids
    (completion,) = llm.generate(prompt, GREEDY)
    decoder = Decoder.from_weights(checkpoint.config, plan, checkpoint.weights)
    tokens = torch.tensor([*prompt, *completion.token_ids])
    with torch.inference_mode():
        logits = decoder(tokens[None], DenseAttention(checkpoint.config, plan))[0]
    assert completion.token_ids == logits.argmax(-1)[len(prompt) - 1 : -1].tolist()


def test_a_folded_session_goes_on_over_the_window_s_edge(family: Path) -> None:
    bundle = family / "folded"
    run_recipe(family, "folded", bundle, until=target_stage("build", "cpu"))
    llm = LLM.load(bundle)
    with llm.session() as session:
        session.send(QUESTION, GREEDY)
        warm = session.send("And the tab?", GREEDY)
        known = session._conversation.known.token_ids
    assert warm.usage.reused_tokens > 0
    prompt, reply = known[: -len(warm.token_ids)], warm.token_ids
    assert LLM.load(bundle).generate(prompt, GREEDY)[0].token_ids == reply
    assert len(prompt) > 128, "the windows have moved"
