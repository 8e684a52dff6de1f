"""A subject that reads layer by layer gives what the whole model gives, and holds a head once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvfold.export.layerwise.layerwise_model import LayerwiseModel
from kvfold.export.model.matmul_dtype import matmul_dtype, multiply_in_float32
from kvfold.pipeline.quality.load_subjects import Heads, LayerwiseSubject
from kvfold.pipeline.quality.subjects import TorchSubject
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


def test_equal_heads_are_held_once() -> None:
    heads = Heads()
    first, second = (pair(preset, torch.float32, heads)[0] for preset in ("identity", "horizon"))
    held = []
    for subject in (first, second):
        subject.compute_logits(TEXTS[1])
        assert subject._head is not None
        held.append(subject._head.weight.data_ptr())
    assert held[0] == held[1]
