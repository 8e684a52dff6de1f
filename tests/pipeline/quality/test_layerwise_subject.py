"""A subject that reads layer by layer gives what the whole model gives, and shares heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.layerwise.layerwise_model import ROUNDED_ROWS, LayerwiseModel
from kvfold.export.model.matmul_dtype import matmul_dtype, multiply_in_float32
from kvfold.export.weights.changed_weights import ChangedWeights
from kvfold.pipeline.quality.load_subjects import Heads, LayerwiseSubject
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.quality.torch_subject import TorchSubject
from tests.tiny_model import VOCAB_SIZE, hugging_face_names, tiny_config, tiny_decoder, tiny_plan

CONFIG = tiny_config(tie_word_embeddings=True, final_softcap=3.0)
TEXTS = [
    np.random.default_rng(seed).integers(0, VOCAB_SIZE, length) for seed, length in enumerate((90, 7, 90))
]


def pair(preset: str, dtype: torch.dtype, heads: Heads) -> tuple[LayerwiseSubject, TorchSubject]:
    """The same model, layer by layer and whole."""
    plan = tiny_plan(CONFIG, preset)
    decoder = tiny_decoder(CONFIG, plan)
    model = LayerwiseModel(CONFIG, plan, hugging_face_names(decoder), dtype)
    decoder.to(dtype)
    if dtype is torch.bfloat16 and matmul_dtype() is torch.float32:
        multiply_in_float32(decoder)
    return LayerwiseSubject("layerwise", model, heads), TorchSubject("whole", decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["horizon", "character"])
def test_it_gives_the_whole_model_s_logits(preset: str, dtype: torch.dtype) -> None:
    subject, whole = pair(preset, dtype, Heads())
    told: list[float] = []
    subject.read_ahead(TEXTS, told.append)
    assert sum(told) == pytest.approx((1 - subject.left) * sum(map(len, TEXTS)))
    unread = TEXTS[0][:50]
    for text in (*TEXTS, unread):
        for first in (0, 5):
            found, expected = (list(each.stream_logits(text, first)) for each in (subject, whole))
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_folding_left_alone_is_held_once(tied: bool) -> None:
    """By the original, its bfloat16 self, and a folded model; one that has another head has its own."""
    config = tiny_config(tie_word_embeddings=tied)
    identity = tiny_plan(config, "identity")
    weights, heads = hugging_face_names(tiny_decoder(config, identity)), Heads()
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    folded = ChangedWeights(weights, {"model.layers.0.self_attn.o_proj.weight": torch.zeros(1)})
    other = ChangedWeights(folded, {name: weights[name] + 1})
    same = [
        LayerwiseModel(config, identity, weights),
        LayerwiseModel(config, identity, weights, torch.bfloat16),
        LayerwiseModel(config, identity, folded),
    ]
    assert len({heads.of(model).data_ptr() for model in same}) == 1
    embedding = heads.embedding(same[2])
    assert (embedding is not None) == tied
    torch.testing.assert_close(heads.of(LayerwiseModel(config, identity, other)), weights[name] + 1)


def test_rungs_of_one_checkpoint_hold_its_head_once(tmp_path: Path) -> None:
    """Each opens it anew; a copy is another checkpoint, and so is what stands in the same place later."""
    write_folder(tmp_path / "one", random_model("llama"))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    heads = Heads()

    def head(folder: str) -> int:
        checkpoint = load_checkpoint(str(tmp_path / folder))
        plan = FoldPlan.of(checkpoint.config.attention_shape)
        rung = ChangedWeights(checkpoint.weights, {"model.layers.0.self_attn.o_proj.weight": torch.zeros(1)})
        return heads.of(LayerwiseModel(checkpoint.config, plan, rung)).data_ptr()

    before = [head("one") for _ in range(4)]
    assert len({*before, head("copy")}) == 2 == len({*before}) + 1
    shutil.rmtree(tmp_path / "one")
    write_folder(tmp_path / "one", random_model("llama"))
    assert head("one") not in before


def test_a_rounded_head_is_the_whole_one_rounded() -> None:
    config = tiny_config(vocab_size=2 * ROUNDED_ROWS + 5, num_hidden_layers=1)
    plan = tiny_plan(config, "identity")
    model = LayerwiseModel(config, plan, {}, torch.bfloat16)
    head, hidden = torch.randn(config.vocab_size, config.hidden_size), torch.randn(3, config.hidden_size)
    expected = hidden.bfloat16().double() @ head.bfloat16().double().T
    found = model.logits(hidden.bfloat16(), head)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected.bfloat16().float(), rtol=2**-7, atol=2**-7)
