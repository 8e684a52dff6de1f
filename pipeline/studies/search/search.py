"""Search a plan: measure what is not measured yet, choose globals, choose banks, measure whole plans."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.export.search.choose import (
    Candidate,
    Horizons,
    by_size,
    choose_banks,
    choose_horizons,
    front,
    grow_globals,
    refine,
    settle,
    smallest_below,
)
from kvfold.export.search.costs import (
    Change,
    Cost,
    CostTable,
    distant_changes,
    large_banks,
    layer_changes,
    shortened_layers,
)
from kvfold.export.search.space import PlanSpace, Solution
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.show.watch import Watch, Work
from kvfold.pipeline.studies.outlook import say_outlook
from kvfold.pipeline.studies.search.check_recipe import check_recipe
from kvfold.pipeline.studies.search.found import Found
from kvfold.pipeline.studies.search.goal import Goal
from kvfold.pipeline.studies.search.ledger import Ledger, globals_name
from kvfold.pipeline.studies.search.search_outlook import search_tasks
from kvfold.pipeline.studies.search.search_questions import write_questions
from kvfold.pipeline.texts.text_stage import fingerprint_text
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.sources import hash_sources
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.errors import RecipeError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, part
from kvfold.plugins.contract.version import VERSION

if TYPE_CHECKING:
    from kvfold.export.search.measure_changes import Laboratory

# Dials that decide a measurement; the others decide only what is chosen from them.
MEASURING = {
    *("kl_tokens", "prompts", "prompt_length", "measured_window", "sink_size", "negligible_int8_kl"),
}
# What measures, and what is read: a change of what these are made from measures anew.
MEASURING_MODULES = (
    "kvfold.export.search.measure_changes",
    "kvfold.pipeline.studies.search.search_questions",
    "kvfold.pipeline.texts.text_stage",
)


class Search:
    """One search; what it measures goes into a ledger, and what is there is not measured again."""

    def __init__(self, recipe: Recipe, goal: Goal, ledger: Path, watch: Watch) -> None:
        """Read the checkpoint's header and the ledger.

        Raises:
            RecipeError: the recipe cannot take a searched plan.
            CheckpointError, UnsupportedModelError: the model cannot be read.
        """
        check_recipe(recipe)
        self._recipe, self._goal, self._watch = recipe, goal, watch
        self._checkpoint = read_checkpoint(Workspace(recipe, Path()))
        self._config = self._checkpoint.config
        self._ledger = Ledger(ledger, self._key())
        self._plans: list[Candidate] = []

    def run(self) -> Found:
        """The plan; what is to be done for it is said first.

        Raises:
            PlanError: the goal cannot be reached; the nearest that can is named.
            RecipeError: prompts and model do not fit together.
            CalibrationError: the text cannot be read, or is too short.
        """
        changes = list(layer_changes(self._config, self._recipe.search.sliding_windows))
        say_outlook(self._watch.console, search_tasks(self._recipe.search, self._config, self._ledger.file))
        self._measure(changes)
        space = self._space(changes)
        choose_banks(space, frozenset(), self._goal.targets)  # where even that is too large, nothing helps
        trail = grow_globals(
            shortened_layers(self._config.attention_shape, self._recipe.search.measured_window),
            self._measure_none(),
            self._unfolded + self._recipe.search.max_retrieval_loss,
            lambda globals_: self._goal.fits(space, globals_),
            self._measure_globals,
        )
        space = settle(lambda: self._space(changes), partial(self._best, trail), self._measure)
        horizons = choose_horizons(space, trail, self._goal.targets)
        if self._goal.share_distant_globals:
            changes += distant_changes(self._config, horizons.globals_)
            self._measure(changes)
        space = settle(lambda: self._space(changes), partial(self._eligible, horizons), self._measure)
        space = replace(space, forbidden=space.table.guessed)  # nor do the neighbours of what is chosen
        best = self._choose(space, horizons.globals_)
        return Found(
            plan=space.plan(best.solution),
            solution=best.solution,
            cost=best.cost,
            plans=tuple(self._plans),
            horizons=horizons,
            space=space,
        )

    def _choose(self, space: PlanSpace, globals_: frozenset[int]) -> Candidate:
        targets, max_kl, limit = self._goal.targets, self._goal.max_kl, self._recipe.search.plans
        with self._watch.work(Work("plans", "folding and measuring whole plans")) as progress:

            def measure(solution: Solution) -> Cost:
                plan, number = space.plan(solution), len(self._plans)
                share = part(progress, number / limit, 1 / limit, f"plan {number + 1} of at most {limit}")
                share(0)
                cost = self._ledger.cost(plan_name(plan), lambda: self._measure_plan(plan, share))
                self._plans.append(Candidate(solution, cost))
                return cost

            if max_kl is None:
                return refine(space, globals_, targets, measure)
            if targets:
                choose_banks(space, globals_, targets)  # names the smallest plan where none fits
            return smallest_below(by_size(front(space, globals_, targets)), max_kl, limit, measure)

    def _best(self, trail: Sequence[Horizons], space: PlanSpace) -> list[Solution]:
        """The plans that say how many globals are worth it."""
        return [choose_banks(space, horizons.globals_, self._goal.targets) for horizons in trail]

    def _eligible(self, horizons: Horizons, space: PlanSpace) -> list[Solution]:
        """The plans of which one is chosen."""
        plans = front(space, horizons.globals_, self._goal.targets)
        return plans[-1:] if self._goal.max_kl is None else plans

    def _space(self, changes: Sequence[Change]) -> PlanSpace:
        """The costs of changes that were measured, and of larger banks, measured or guessed."""
        costs, larger = self._ledger.file.costs, list(large_banks(self._config))
        known = {change: costs[change.name] for change in (*changes, *larger) if change.name in costs}
        return PlanSpace(
            shape=self._config.attention_shape,
            table=CostTable.of(self._unfolded, known, larger),
            settings=self._recipe.search,
            wide=self._recipe.float_dtype,
            page_size=self._recipe.page_size,
            lengths=self._goal.lengths,
            share_distant_globals=self._goal.share_distant_globals,
        )

    @property
    def _unfolded(self) -> float:
        """NLL of an answer by the unfolded model."""
        nll = self._ledger.cost("unfolded", self._measure_unfolded).nll
        assert nll is not None, "the unfolded model is asked"
        return nll

    def _measure_unfolded(self) -> Cost:
        laboratory = self._laboratory
        with self._watch.work(Work("unfolded", "asking the unfolded model")):
            return laboratory.examination.unfolded()

    def _measure(self, changes: Sequence[Change]) -> None:
        """Put the cost of each change into the ledger, where it is not there."""
        from kvfold.export.search.measure_changes import measure_changes

        missing = [change for change in changes if change.name not in self._ledger.file.costs]
        if missing:
            total = sum(self._work(change) for change in changes)
            done = total - sum(self._work(change) for change in missing)
            laboratory = self._laboratory
            doing = f"measuring {len(missing):,} changes of layers"
            with self._watch.work(Work("layers", doing)) as progress:
                progress(done / total)
                for change, cost in measure_changes(laboratory, missing):
                    self._ledger.put_cost(change.name, cost)
                    done += self._work(change)
                    progress(done / total, f"{change.name}: KL {cost.kl:.4f}")

    def _work(self, change: Change) -> int:
        """How long a measurement takes, relative to others: the fold, then the layers that are left."""
        span = change.layers[-1] - change.layers[0] + 1 if change.kind == "bank" else 0
        return 16 + 16 * span + 2 * (self._config.num_hidden_layers - change.layers[0])

    def _measure_globals(self, base: frozenset[int], candidates: Collection[int]) -> dict[int, float]:
        """NLL with each candidate added, from the ledger where it is there."""
        from kvfold.export.search.measure_changes import measure_globals

        answers = self._ledger.file.answers
        missing = [layer for layer in candidates if globals_name(base | {layer}) not in answers]
        if missing:
            doing = f"{len(base)} global so far, {len(candidates)} candidates"
            laboratory = self._laboratory
            with self._watch.work(Work("globals", doing)) as progress:
                for layer, nll in measure_globals(laboratory, base, missing):
                    self._ledger.put_answers(base | {layer}, nll)
                    progress((missing.index(layer) + 1) / len(missing))
        return {layer: answers[globals_name(base | {layer})] for layer in candidates}

    def _measure_none(self) -> float:
        """NLL without any global layer."""
        from kvfold.export.search.measure_changes import measure_locals

        answers, none = self._ledger.file.answers, frozenset[int]()
        if globals_name(none) not in answers:
            laboratory = self._laboratory
            with self._watch.work(Work("globals", "asking without any global layer")):
                self._ledger.put_answers(none, measure_locals(laboratory))
        return answers[globals_name(none)]

    def _measure_plan(self, plan: FoldPlan, progress: Progress) -> Cost:
        from kvfold.export.search.measure_changes import measure_plan

        return measure_plan(self._laboratory, plan, progress)

    @cached_property
    def _laboratory(self) -> Laboratory:
        """Text, prompts and the unfolded model; not needed when everything was measured before."""
        import torch

        from kvfold.export.search.examine import Examination
        from kvfold.export.search.measure_changes import Laboratory
        from kvfold.runtime.text.tokenizer import BundleTokenizer

        checkpoint, settings = self._checkpoint, self._recipe.search
        tokenizer = BundleTokenizer(checkpoint.tokenizer.backend, checkpoint.tokenizer.config)
        questions = list(write_questions(settings, tokenizer, self._config.max_position_embeddings))
        text = settings.text
        if not self._ledger.file.tokens:
            self._read_text()
        tokens = torch.tensor(self._ledger.file.tokens)
        held_out = spread(len(tokens), ceil(settings.kl_tokens / text.sequence_length))
        rest = [row for row in range(len(tokens)) if row not in held_out]
        examination = Examination(self._config, checkpoint.weights, tokens[held_out], questions)
        return Laboratory(examination, tokens[rest], self._recipe.fold, settings)

    def _read_text(self) -> None:
        """Put the text into the ledger; what a model needs to write it is not kept."""
        from kvfold.pipeline.texts.texts import read_texts

        folder = self._ledger.path.with_suffix(".writer")
        with self._watch.work(Work("text", "preparing the text")) as progress:
            tokens = read_texts((self._recipe.search.text,), self._checkpoint, folder, progress)
        self._ledger.put_tokens(tokens.tolist())
        shutil.rmtree(folder, ignore_errors=True)

    def _key(self) -> str:
        settings = self._recipe.search
        parts = [
            *(VERSION, hash_sources(MEASURING_MODULES), self._checkpoint.fingerprint),
            *(fingerprint_text(settings.text), settings.model_dump(mode="json", include=MEASURING)),
            self._recipe.fold.model_dump(mode="json"),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def spread(count: int, wanted: int) -> list[int]:
    """Evenly spaced numbers below `count`, at least one fewer than that, so that something is left."""
    wanted = min(wanted, count - 1)
    if wanted < 1:
        raise RecipeError(
            "search.text is a single sequence; raise search.text.tokens, or shorten its sequence_length"
        )
    return [index * count // wanted for index in range(wanted)]


def plan_name(plan: FoldPlan) -> str:
    """By content."""
    return f"plan {hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:16]}"
