"""Perplexity and divergence: computed by hand, on tables whose distances are known, and on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kvfold.pipeline.quality.likelihood import (
    cut_windows,
    measure_divergences,
    measure_perplexity,
    stream_losses,
)
from kvfold.pipeline.quality.likelihood_results import Divergence
from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.subjects import BLOCK_TOKENS, EngineSubject, Subject, blocks
from kvfold.plugins.contract.errors import ValidationError
from tests.pipeline.quality.torch_subject import TorchSubject
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan
from tests.tiny_model import VOCAB_SIZE, tiny_config, tiny_decoder, tiny_plan

CONFIG = tiny_config(max_position_embeddings=1024)
IDENTITY = tiny_plan(CONFIG, "identity")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 700))


class BigramSubject(Subject):
    """Logits are a function of the token alone."""

    def __init__(self, name: str, table: np.ndarray) -> None:
        super().__init__(name)
        self._table = table

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._table[token_ids]
        return logits


def ignore(tokens: float) -> None:
    """A tick that nobody watches."""


def original(name: str = ORIGINAL, dtype: torch.dtype = torch.float32) -> TorchSubject:
    return TorchSubject(name, tiny_decoder(CONFIG, IDENTITY).to(dtype))


def test_blocks_end_at_the_same_positions_wherever_they_start() -> None:
    end = BLOCK_TOKENS + 40
    assert list(blocks(0, end)) == [slice(0, BLOCK_TOKENS), slice(BLOCK_TOKENS, end)]
    assert list(blocks(end - 20, end)) == [slice(end - 20, end)]
    assert list(blocks(5, 5)) == []


@pytest.mark.parametrize("first", [0, 5, BLOCK_TOKENS, 698])
def test_streams_are_the_whole_computation_s_last_rows(first: int) -> None:
    plan = make_plan((None, 0), (32, 4))
    synthetic = SyntheticEngine(plan, 200, vocab=VOCAB_SIZE, context=1024)
    for subject, tolerance in ((original(), 1e-4), (EngineSubject(ENGINE, synthetic, 40), 0)):
        streamed = np.concatenate(list(subject.stream_logits(TOKENS[0], first)))
        whole = subject.compute_logits(TOKENS[0])
        assert streamed.shape == whole[first:].shape
        assert np.abs(streamed - whole[first:]).max() <= tolerance


def test_perplexity_is_the_hand_computed_one() -> None:
    """Two windows of 2 and 3: uniform over 4 tokens, then p = 1/2; perplexity is exp of the mean of all."""
    table = np.log(np.array([[0.25] * 4, [0.5, 0.5, 1e-30, 1e-30], [0.25] * 4, [0.25] * 4], np.float32))
    windows = np.array([[0, 3, 2], [1, 1, 0]])
    found = measure_perplexity(windows, 3, [BigramSubject(ORIGINAL, table)], ignore)
    expected = np.exp((2 * np.log(4) + 2 * np.log(2)) / 4)
    assert found.subjects[ORIGINAL].value == pytest.approx(expected, rel=1e-6)
    assert (found.length, found.windows, found.ratios) == (3, 2, {})


def test_losses_are_torch_s_own_cross_entropy() -> None:
    """Through the blocks' borders, from any first token on."""
    subject = original()
    logits = torch.from_numpy(subject.compute_logits(TOKENS[1]))
    expected = torch.nn.functional.cross_entropy(
        logits[:-1].double(), torch.from_numpy(TOKENS[1, 1:]), reduction="none"
    )
    assert stream_losses(subject, TOKENS[1]) == pytest.approx(expected.numpy(), abs=1e-4)
    assert stream_losses(subject, TOKENS[1], 600) == pytest.approx(expected.numpy()[600:], abs=1e-4)


def test_windows_cover_the_text_once() -> None:
    windows = cut_windows(np.arange(20).reshape(2, 10), 4)
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13], [14, 15, 16, 17]]


def divergences() -> Iterator[Divergence]:
    folded = TorchSubject(FOLDED, tiny_decoder(CONFIG, tiny_plan(CONFIG, "horizon")))
    bfloat16 = original(BFLOAT16, torch.bfloat16)
    found, _ = measure_divergences(TOKENS, original(), (original("itself"), bfloat16, folded), ignore)
    assert (found.length, found.windows, found.tokens) == (700, 4, 2800)
    yield from found.candidates


def test_kl_to_itself_is_zero_and_to_bfloat16_the_noise_floor() -> None:
    itself, floor, folded = divergences()
    for estimate in (itself.kl_mean, itself.kl_median, itself.kl_p99, itself.flips):
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    assert itself.top1_agreement.value == 1
    assert 0 < floor.kl_median.value < floor.kl_mean.value < floor.kl_p99.value
    # Windows of 32 in a text of 700 cost more than rounding does.
    assert folded.kl_mean.low is not None
    assert floor.kl_mean.high is not None
    assert folded.kl_mean.low > 3 * floor.kl_mean.high


@pytest.mark.parametrize(("width", "length"), [(700, 700), (BLOCK_TOKENS + 1, BLOCK_TOKENS + 1), (700, 300)])
def test_a_comparison_knows_the_losses_that_perplexity_is_made_of(width: int, length: int) -> None:
    """Those of the first window of the first three sequences; reading them again gives the same."""
    subjects = original(), TorchSubject(FOLDED, tiny_decoder(CONFIG, tiny_plan(CONFIG, "horizon")))
    sequences = TOKENS[:, :width]
    _, known = measure_divergences(sequences[:3], subjects[0], subjects[1:], ignore)
    read: list[float] = []
    found = measure_perplexity(sequences, length, subjects, read.append, known)
    again = measure_perplexity(sequences, length, subjects, ignore)
    windows = 4 * (width // length)
    assert found.windows == windows
    assert read == [length] * 2 * (windows - 3)
    for name in (ORIGINAL, FOLDED):
        assert found.subjects[name].value == pytest.approx(again.subjects[name].value, rel=1e-5)
    assert found.subjects[ORIGINAL].value != found.subjects[FOLDED].value


def test_an_engine_s_windows_are_bit_for_bit_those_it_has_read() -> None:
    plan = make_plan((None, 0), (32, 4))
    subject = EngineSubject(ORIGINAL, SyntheticEngine(plan, 200, vocab=VOCAB_SIZE, context=1024), 40)
    _, known = measure_divergences(TOKENS, subject, (), ignore)
    for length in (100, 350, 700):
        found = measure_perplexity(TOKENS, length, (subject,), ignore, known)
        assert found == measure_perplexity(TOKENS, length, (subject,), ignore)


def test_flips_are_counted_by_who_was_right() -> None:
    """Tokens 0 and 1 alternate; the original knows it, the candidate says 0 after both: lost after 0."""
    knows = np.array([[0.0, 5.0], [5.0, 0.0]], np.float32)
    says_zero = np.array([[5.0, 0.0], [5.0, 0.0]], np.float32)
    windows = np.array([[0, 1] * 4])
    subjects = BigramSubject(ORIGINAL, knows), BigramSubject(FOLDED, says_zero)
    (found,) = measure_divergences(windows, subjects[0], subjects[1:], ignore)[0].candidates
    assert (found.flips.value, found.top1_agreement.value) == (0.5, 0.5)
    assert (found.flips_lost.value, found.flips_gained.value) == (0.5, 0)
    (back,) = measure_divergences(windows, subjects[1], subjects[:1], ignore)[0].candidates
    assert (back.flips_lost.value, back.flips_gained.value) == (0, 0.5)
    assert found.kl_mean.low is None  # one window cannot tell


def test_logits_that_are_not_numbers_are_an_error() -> None:
    good, broken = np.zeros((4, 4), np.float32), np.full((4, 4), np.nan, np.float32)
    subjects = BigramSubject(ORIGINAL, good), BigramSubject(FOLDED, broken)
    windows = np.array([[0, 1, 2, 3]])
    with pytest.raises(ValidationError, match="folded are NaN"):
        measure_perplexity(windows, 4, subjects, ignore)
    with pytest.raises(ValidationError, match="folded are NaN"):
        measure_divergences(windows, subjects[0], subjects[1:], ignore)
    with pytest.raises(ValidationError, match="original are NaN"):
        measure_divergences(windows, BigramSubject(ORIGINAL, broken), subjects[1:], ignore)
