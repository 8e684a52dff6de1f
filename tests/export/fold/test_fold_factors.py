"""The closed forms on plain tensors: optimal, and exact with respect to RoPE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.bank import key_covariance
from kvfold.export.fold.keys import (
    choose_slots,
    complex_from_halves,
    fit_keys,
    halves_from_complex,
    key_spectrum,
    scale_queries,
)
from kvfold.export.fold.regression import Moments, append_one
from kvfold.export.fold.values import fit_values
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from tests.tiny_model import tiny_config

MEMBERS, SIZE, INPUTS, TOKENS = 3, 8, 12, 400


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_values_reach_the_optimum_of_their_metric(generator: torch.Generator) -> None:
    values = random(generator, TOKENS, MEMBERS * SIZE) @ random(generator, MEMBERS * SIZE, MEMBERS * SIZE)
    roots = random(generator, MEMBERS, SIZE, SIZE)
    metric = roots.mT @ roots
    factors = fit_values(values.T @ values / TOKENS, metric)
    members = values.reshape(TOKENS, MEMBERS, SIZE)
    common = torch.einsum("mcd,tmd->tc", factors.projection, members)
    error = members - torch.einsum("mdc,tc->tmd", factors.factors, common)
    loss = torch.einsum("tmd,mde,tme->", error, metric, error) / TOKENS
    # Eckart-Young: what is lost is the tail of the spectrum in the metric.
    seen = torch.einsum("mcd,tmd->tmc", roots, members).flatten(1)
    spectrum = torch.linalg.svdvals(seen).square() / TOKENS
    assert loss.item() == pytest.approx(spectrum[SIZE:].sum().item(), rel=1e-6)


@pytest.mark.parametrize("fitted", [False, True])
def test_keys_reach_the_optimum_of_their_metric(generator: torch.Generator, fitted: bool) -> None:
    """Eckart-Young: what is lost are the components without a slot; fitted slots hold the largest."""
    keys = torch.complex(
        random(generator, TOKENS, MEMBERS, SIZE // 2), random(generator, TOKENS, MEMBERS, SIZE // 2)
    )
    power = random(generator, MEMBERS, SIZE // 2).square()
    second = torch.einsum("tmf,tnf->fmn", keys, keys.conj()) / TOKENS
    spectrum = key_spectrum(second, power)
    slots = choose_slots([spectrum]) if fitted else tuple(range(SIZE // 2))
    factors = fit_keys(spectrum, slots)
    common = (factors.projection * keys[:, :, list(slots)]).sum(1)
    found = torch.zeros_like(keys).index_add_(2, torch.tensor(slots), factors.factors * common[:, None])
    loss = (power * (keys - found).abs().square()).sum() / TOKENS
    weighted = power.sqrt().T
    eigenvalues = torch.linalg.eigvalsh(weighted[:, :, None] * second * weighted[:, None, :])
    lost = eigenvalues.flatten().sort().values[: -SIZE // 2] if fitted else eigenvalues[:, :-1]
    assert loss.item() == pytest.approx(lost.sum().item(), rel=1e-9)
    assert set(slots) != set(range(SIZE // 2)) or not fitted, "the case must be one where fitting matters"


def test_a_query_absorbs_its_factor_at_every_position(generator: torch.Generator) -> None:
    config = tiny_config()
    layer = LayerPlan(donor=0, num_key_value_heads=1)
    plan = FoldPlan(num_attention_heads=config.num_attention_heads, head_dim=config.head_dim, layers=(layer,))
    size = config.head_dim
    slots = (0, 1, 1, 1, 4, 5, 5, 7)
    rotate, rotate_slots = (
        DenseAttention(config, each).rotate for each in (plan, plan.with_rope_slots(0, slots))
    )
    factor = torch.complex(random(generator, 1, size // 2), random(generator, 1, size // 2))
    query, key = random(generator, 1, size, 20), random(generator, 1, size, 20)
    read = factor[..., None] * complex_from_halves(key)
    whole = halves_from_complex(torch.zeros_like(read).index_add_(1, torch.tensor(slots), read))
    scaled_query = scale_queries(query, factor, slots)
    for start in (0, 7, 100):
        before = rotate(query.mT[:, :, None], 0, start) * rotate(whole.mT[:, :, None], 0, 2 * start)
        after = rotate_slots(scaled_query.mT[:, :, None], 0, start) * rotate_slots(
            key.mT[:, :, None], 0, 2 * start
        )
        torch.testing.assert_close(after.sum(-1), before.sum(-1))


def test_key_covariance_ignores_a_constant_rotated_key(generator: torch.Generator) -> None:
    """A predictor that gives the same rotated key at all positions carries no information."""
    x = torch.ones(TOKENS, 1, dtype=torch.float64)
    still = torch.complex(random(generator, MEMBERS, 2, 1), random(generator, MEMBERS, 2, 1))
    mean = torch.ones(2, 1, dtype=torch.complex128)  # a frequency of zero: never turns
    covariance = key_covariance(still, x.T @ x / TOKENS, mean)
    torch.testing.assert_close(covariance, torch.zeros_like(covariance))


def test_a_regression_finds_weights_and_keeps_its_prior_where_blind(generator: torch.Generator) -> None:
    x, truth, prior = random(generator, TOKENS, INPUTS), random(generator, 5, INPUTS), torch.ones(5, INPUTS)
    x[:, -1] = 0
    moments = Moments(INPUTS, 5)
    for part in x.float().chunk(4):
        moments.add(part, part @ truth.float().T)
    solved = moments.solve(prior, 1e-9)
    torch.testing.assert_close(solved[:, :-1], truth[:, :-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solved[:, -1], prior[:, -1].double())
    assert moments.relative_error(solved) < 1e-3
    assert moments.relative_error(torch.zeros_like(solved)) == pytest.approx(1)


def test_append_one_makes_a_bias_a_weight() -> None:
    assert append_one(torch.zeros(2, 3, 4))[1, 2].tolist() == [0, 0, 0, 0, 1]
