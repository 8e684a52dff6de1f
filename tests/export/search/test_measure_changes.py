"""Laws of measuring: a change measured from where it begins costs what it costs as a whole plan."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.search.costs import (
    Change,
    Cost,
    distant_changes,
    large_banks,
    layer_changes,
    shortened_layers,
)
from kvfold.export.search.examine import Examination
from kvfold.export.search.measure_changes import (
    Laboratory,
    measure_changes,
    measure_globals,
    measure_locals,
    measure_plan,
    narrowed,
    with_windows,
)
from kvfold.export.search.question import Question
from kvfold.export.search.search_settings import SearchSettings
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.tiny_checkpoints import random_model
from tests.tiny_model import dense_logits

SETTINGS = SearchSettings(
    sliding_windows=(16, 24), measured_window=16, prompt_length=128, negligible_int8_kl=0.0
)
LAYERS = 4


def random_ids(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


@cache
def laboratory(family: str = "llama") -> Laboratory:
    """A random model of four layers; its text is longer than the window."""
    model = random_model(family, num_hidden_layers=LAYERS)
    config = config_from_huggingface(model.config.to_dict())
    questions = [Question(random_ids(length, seed=length).numpy(), length - 5) for length in (60, 71)]
    examination = Examination(config, dict(model.state_dict()), random_ids(6, 40, seed=1), questions)
    return Laboratory(examination, random_ids(16, 64, seed=2), FoldSettings(), SETTINGS)


def plan_of(change: Change) -> FoldPlan:
    """The whole plan that changes nothing else."""
    identity = laboratory().examination.identity
    match change.kind:
        case "windowed":
            return with_windows(identity, change.layers, change.window or 0, SETTINGS.sink_size)
        case "int8":
            return identity.with_layers(change.layers, kv_dtype="int8")
        case "bank":
            return identity.with_layers(change.layers, donor=change.layers[0], num_key_value_heads=1)


@pytest.mark.parametrize(
    "change",
    [
        Change("windowed", (2,), 16),
        Change("int8", (1,)),
        Change("bank", (0,)),
        Change("bank", (1, 2)),
        Change("bank", (1, 2, 3)),
        Change("bank", (0, 3)),
    ],
    ids=lambda change: change.name,
)
def test_a_change_costs_what_its_whole_plan_does(change: Change) -> None:
    ((measured, cost),) = measure_changes(laboratory(), [change])
    assert measured == change
    whole = measure_plan(laboratory(), plan_of(change))
    assert cost.kl > 0
    assert cost.kl == pytest.approx(whole.kl, rel=1e-3)
    assert cost.nll is None if change.kind == "windowed" else cost.nll == pytest.approx(whole.nll, rel=1e-3)


def test_answers_are_not_asked_of_an_int8_cache_that_costs_nothing() -> None:
    change = Change("int8", (1,))
    ((_, asked),) = measure_changes(laboratory(), [change])
    content = replace(laboratory(), settings=SETTINGS.model_copy(update={"negligible_int8_kl": asked.kl}))
    ((_, cost),) = measure_changes(content, [change])
    assert asked.nll is not None
    assert cost == Cost(kl=asked.kl)


def test_unchanged_models_cost_nothing() -> None:
    examination = laboratory().examination
    assert measure_plan(laboratory(), examination.identity) == examination.unfolded()


def test_an_answer_s_nll_is_the_model_s_own() -> None:
    examination = laboratory().examination
    decoder = Decoder.from_weights(examination.config, examination.identity, examination.weights)
    total = 0.0
    for length in (60, 71):
        ids = random_ids(length, seed=length)
        log_p = dense_logits(decoder, ids[None])[0].log_softmax(-1)
        total -= sum(float(log_p[i - 1, ids[i]]) for i in range(length - 5, length))
    assert examination.unfolded().nll == pytest.approx(total / 2, rel=0.02)  # bfloat16 against float32


def test_changes_are_measured_alone_whatever_else_is_asked_for() -> None:
    changes = [
        Change("bank", (0, 1)),
        Change("int8", (1,)),
        Change("windowed", (2,), 16),
        Change("bank", (2,)),
    ]
    together = dict(measure_changes(laboratory(), changes))
    for change in changes:
        ((_, alone),) = measure_changes(laboratory(), [change])
        assert together[change] == alone
    assert list(measure_changes(laboratory(), [])) == []


def horizons_cost(globals_: Collection[int]) -> Cost:
    local = set(range(LAYERS)).difference(globals_)
    identity = laboratory().examination.identity
    return measure_plan(laboratory(), with_windows(identity, local, 16, SETTINGS.sink_size))


def test_globals_are_measured_as_whole_plans() -> None:
    found = dict(measure_globals(laboratory(), frozenset({1}), [3, 0]))
    assert found.keys() == {0, 3}
    for layer, nll in found.items():
        assert nll == pytest.approx(horizons_cost({1, layer}).nll, rel=1e-3)
    assert measure_locals(laboratory()) == pytest.approx(horizons_cost(()).nll, rel=1e-3)


def test_what_a_model_cannot_be_folded_to_is_not_measured() -> None:
    config = laboratory().examination.config
    kinds = [change.name for change in layer_changes(config, (16, 24)) if change.layers[0] == 2]
    assert kinds == ["windowed 2 to 16", "windowed 2 to 24", "int8 2", "bank 2", "bank 2 3"]
    assert [change.name for change in large_banks(config)] == ["bank 0 1 2", "bank 1 2 3"]
    assert [c.layers for c in distant_changes(config, frozenset({0, 1, 3}))] == [(1, 3), (0, 1, 3)]
    multi_query = config.model_copy(update={"num_key_value_heads": 1})
    assert Change("bank", (2,)) not in list(layer_changes(multi_query, ()))
    normed = config.model_copy(update={"qk_norm": "head"})
    assert all(change.kind != "bank" for change in layer_changes(normed, ()))
    assert not list(distant_changes(normed, frozenset({0, 3}))) + list(large_banks(normed))


def test_own_windows_are_shortened_alone_and_layers_that_see_or_turn_otherwise_share_nothing() -> None:
    config = laboratory().examination.config
    windowed = config.model_copy(update={"sliding_windows": (24, None, 16, 16)})
    changes = [change.name for change in layer_changes(windowed, (16, 24)) if change.kind != "int8"]
    assert changes == [
        *("windowed 0 to 16", "bank 0", "windowed 1 to 16", "windowed 1 to 24", "bank 1"),
        *("bank 2", "bank 2 3", "bank 3"),
    ]
    assert not list(large_banks(windowed))
    turned = config.model_copy(update={"ropes": (*config.ropes, *config.ropes), "layer_ropes": (0, 0, 1, 0)})
    banks = [change.layers for change in layer_changes(turned, ()) if len(change.layers) > 1]
    assert banks == [(0, 1)]
    assert [c.layers for c in distant_changes(turned, frozenset({0, 2, 3}))] == []
    assert shortened_layers(windowed.attention_shape, 16) == {0, 1}


def test_prompts_see_through_the_checkpoint_s_own_windows_as_they_are() -> None:
    """Only what a plan shortened stands in for a wider window."""
    shape = replace(laboratory().examination.config.attention_shape, sliding_windows=(200, 200, None, 8))
    own = FoldPlan.of(shape)
    plan = own.with_layers([1, 2], sliding_window=100)
    assert [layer.sliding_window for layer in narrowed(plan, own, 16).layers] == [200, 16, 16, 8]
