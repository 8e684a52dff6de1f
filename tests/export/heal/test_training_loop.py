"""The loop of training: its text, its passes, its optimiser, and work that is compiled where a GPU can."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvfold.export.heal.heal import heal
from kvfold.export.heal.objective import head_kl
from kvfold.export.heal.student import int8_rounding
from kvfold.export.heal.training.muon import Muon
from kvfold.export.heal.training.optimizer import Optimizer
from kvfold.export.heal.training.passes import MEASURED, ON_A_CPU, Passes
from kvfold.export.heal.training.schedule import ByUpdates
from kvfold.export.heal.training.train import Step, backward, batches
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.export.model import dense_attention, mlp
from kvfold.plugins.contract.errors import HealingError
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, TOKENS, tiny_healing

TWO_LENGTHS = TrainingText((TOKENS[:8], TOKENS[8:20, :24]))


class FakeMemory:
    """A device where each token of a pass takes `token_bytes`."""

    def __init__(self, size: int, token_bytes: int) -> None:
        self.size, self.token_bytes, self.tokens = size, token_bytes, 0

    def begin(self) -> None:
        self.tokens = 0

    def most_in_use(self) -> int:
        return self.tokens * self.token_bytes

    def free(self) -> int:
        return self.size


def test_updates_of_two_lengths_see_every_sequence_once_and_keep_their_size() -> None:
    lengths = TWO_LENGTHS.lengths
    assert lengths.tolist() == [48] * 8 + [24] * 12
    seen: list[int] = []
    for rows in batches(lengths, batch_tokens=100, seed=0):
        assert 52 < lengths[rows].sum() <= 100
        groups = list(TWO_LENGTHS.by_length(rows))
        assert sorted(torch.cat(groups).tolist()) == sorted(rows.tolist())
        assert all(TWO_LENGTHS.take(own).shape == (len(own), int(lengths[own[0]])) for own in groups)
        seen += rows.tolist()
        if len(seen) >= 20:
            break
    assert sorted(seen[:20]) == list(range(20))
    assert torch.equal(TWO_LENGTHS.take(torch.tensor([9])), TOKENS[9:10, :24])


def test_one_sequence_longer_than_an_update_is_one() -> None:
    rows = list(islice(batches(torch.tensor([48, 48]), batch_tokens=10, seed=0), 2))
    assert sorted(torch.cat(rows).tolist()) == [0, 1]


def test_healing_learns_from_sequences_of_two_lengths(tmp_path: Path) -> None:
    healing, folded = tiny_healing(SETTINGS.model_copy(update={"layerwise_tokens": 0}))
    heal(replace(healing, text=TWO_LENGTHS), folded, tmp_path, "key", unheard)
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    losses = torch.tensor([line["loss"] for line in lines])
    fifth = len(losses) // 5
    assert losses[-fifth:].mean() < 0.9 * losses[:fifth].mean()


def step_of(weight: Tensor, loss: Callable[[Tensor], Tensor]) -> Step:
    return Step("step", ByUpdates(1), 1e-3, 0, TWO_LENGTHS, {"weight": weight}, loss)


def loss_of(weight: Tensor, rows: Tensor) -> Tensor:
    """A mean over tokens."""
    return (weight[0, TWO_LENGTHS.take(rows)]).square().mean()


def test_where_memory_does_not_suffice_passes_are_halved_and_the_gradient_is_whole() -> None:
    weight = torch.randn(1, 97, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows, tried = torch.arange(20), list[int]()

    def loss(rows: Tensor) -> Tensor:
        tried.append(int(TWO_LENGTHS.lengths[rows].sum()))
        if tried[-1] > 150:
            loss_of(weight, rows).backward()  # type: ignore[no-untyped-call]
            raise torch.OutOfMemoryError("no memory for what comes after a part of the gradient")
        return loss_of(weight, rows)

    passes = Passes(None)
    found = backward(step_of(weight, loss), rows, passes, Optimizer({"weight": weight}))
    assert passes.tokens <= 150 and max(tried) > 150
    whole = torch.cat([weight[0, part].square().flatten() for part in TWO_LENGTHS.parts]).mean()
    assert found == pytest.approx(whole.item(), rel=1e-5)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.autograd.grad(whole, weight)[0], rtol=1e-5)


def test_a_sequence_that_does_not_fit_is_named() -> None:
    weight = torch.zeros(1, 97, requires_grad=True)

    def loss(rows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(HealingError, match="one sequence of 48 tokens; set a shorter sequence_length"):
        backward(step_of(weight, loss), torch.arange(20), Passes(None), Optimizer({"weight": weight}))


def test_the_first_pass_tells_how_large_the_next_may_be() -> None:
    memory = FakeMemory(size=1_000_000, token_bytes=100)
    passes = Passes(memory)

    def work() -> float:
        memory.tokens = 2_000
        return 0.5

    assert passes.rows(512) == MEASURED // 512 and Passes(None).rows(512) == ON_A_CPU // 512
    assert passes.run(2_000, work) == 0.5
    assert passes.tokens == 8_000 and passes.rows(512) == 15 and passes.rows(10_000) == 1
    memory.size = 10
    passes.run(8_000, work)
    assert passes.tokens == 8_000, "only the first is measured"


def test_muon_is_torch_s() -> None:
    """Matrices that lie and stand, of ranks that share a batch and of others; one never gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 7), (7, 40), (40, 31), (33, 40), (40, 40), (16, 16), (40, 5)]
    theirs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    ours = [x.detach().clone().requires_grad_() for x in theirs]
    starts = [x.detach().clone() for x in theirs]
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    muon = Muon(ours)
    for update in range(3):
        for first, second in zip(theirs[:-1], ours[:-1], strict=True):
            first.grad = torch.randn(first.shape, generator=generator)
            second.grad = first.grad.clone()
        reference.step()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        if update == 1:
            kept, muon = muon, Muon(ours)
            muon.restore(kept.state())
        muon.step(1e-2)
    for start, expected, found in zip(starts, theirs, ours, strict=True):
        assert (found - expected).norm() <= 1e-2 * (expected - start).norm()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (head_kl._divergence, (torch.randn(6, 97), torch.randn(6, 97), 0.0, True)),
        (head_kl._divergence, (torch.randn(6, 97), torch.randn(6, 97), 2.0, True)),
        (mlp._gated, (torch.randn(6, 8), torch.randn(6, 8), "silu")),
        (dense_attention._turn, (torch.randn(2, 6, 3, 8), torch.randn(6, 1, 4), torch.randn(6, 1, 4))),
        (int8_rounding._planes, (torch.randn(6, 8), torch.ones(8), 16)),
    ],
)
def test_what_a_gpu_compiles_is_one_graph_of_the_same_values(
    function: Any, arguments: tuple[Any, ...]
) -> None:
    copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    compiled: Any = torch.compile(function.__wrapped__, dynamic=True, fullgraph=True, backend="eager")
    found, expected = compiled(*copies), function(*arguments)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(copies[0], arguments[0])  # where the result replaces it
