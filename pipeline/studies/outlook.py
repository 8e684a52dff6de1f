"""What a command is going to do and about how long that takes here, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding

from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.show.watch import format_seconds
from kvfold.pipeline.stages import heal, training
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.read_checkpoint import read_config
from kvfold.pipeline.workspace.run_stages import pending_stages
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import CONFIG

if TYPE_CHECKING:
    from kvfold.export.model.model_config import ModelConfig

PROBE_TOKENS = 256
PROBE_VOCAB = 8_192
UNKNOWN = "takes, its progress will tell."


@dataclass(frozen=True)
class Task:
    """A part of what a command is going to do.

    Attributes:
        doing: in words, with the counts that make it long: "read 24,576 tokens".
        seconds: about how long it takes here; None where nothing tells before it begins.
        at_least: whether that is a part of it, and the rest is not known.
    """

    doing: str
    seconds: float | None = None
    at_least: bool = False

    def describe(self) -> str:
        """`read 24,576 tokens: about 3 min 20 s`."""
        if self.seconds is None:
            return self.doing
        return f"{self.doing}: {'at least ' * self.at_least}{_about(self.seconds)}"


def say_outlook(console: Console, tasks: Iterable[Task]) -> None:
    """Print the tasks, each when it is known, and their sum; nothing where there is nothing to do."""
    listed: list[Task] = []
    for task in tasks:
        if not listed:
            console.print("To do, before the tables:")
        listed.append(task)
        console.print(Padding(task.describe(), (0, 0, 0, 2), expand=False), highlight=False)
    known = [task.seconds for task in listed if task.seconds is not None]
    whole = len(known) == len(listed) and not any(task.at_least for task in listed)
    if not whole:
        least = f"Together at least {_about(sum(known))}; how long the rest" if known else "How long that"
        console.print(f"{least} {UNKNOWN}", highlight=False)
    elif len(known) > 1:
        console.print(f"Together {_about(sum(known))}.", highlight=False)


def _about(seconds: float) -> str:
    """`about 12 s`, `about 3 min`."""
    return f"about {format_seconds(seconds) if seconds < 90 else f'{seconds / 60:.0f} min'}"


def bundle_tasks(recipe: Recipe, root: Path, *until: str) -> list[Task]:
    """What of a bundle is not up to date, as one task; none where all is. `until` are its last stages."""
    idle = () if recipe.training else (training.STAGE.name, heal.STAGE.name)
    pending = {
        stage: seconds
        for name in until
        for stage, seconds in pending_stages(recipe, root, STAGES, name)
        if stage.name not in idle
    }
    if not pending:
        return []
    known = [seconds for seconds in pending.values() if seconds is not None]
    doing = ", ".join(stage.doing for stage in pending)
    return [Task(f"{recipe.name}: {doing}", sum(known) if known else None, len(known) < len(pending))]


def config_of(recipe: Recipe, root: Path) -> ModelConfig:
    """The unfolded model's config: from the bundle, or where there is none yet from the checkpoint."""
    workspace = Workspace(recipe, root)
    return workspace.config if (root / CONFIG).is_file() else read_config(workspace)


def seconds_to_read(config: ModelConfig, tokens: float, scored: float = 1.0) -> float:
    """About how long a float32 model of this shape reads so many tokens here, losses included.

    A second's measurement: one layer and a part of the head, both random, stand for all of them.

    Args:
        config: the shape.
        tokens: in all.
        scored: share of the tokens whose logits are computed.
    """
    import torch

    from kvfold.export.model.decoder import Decoder
    from kvfold.export.model.dense_attention import DenseAttention
    from kvfold.pipeline.quality.logit_measures import negative_log_likelihood

    shape = {
        "num_hidden_layers": 1,
        "sliding_windows": config.sliding_windows[:1],
        "layer_ropes": config.layer_ropes[:1],
        "vocab_size": min(config.vocab_size, PROBE_VOCAB),
    }
    probe = config.model_copy(update=shape)
    plan = FoldPlan.of(probe.attention_shape)
    decoder, ids = Decoder(probe, plan), torch.arange(PROBE_TOKENS) % probe.vocab_size
    with torch.inference_mode():
        hidden = decoder.model(ids[None], DenseAttention(probe, plan))[0]
        layer = _fastest(lambda: decoder.model(ids[None], DenseAttention(probe, plan)))
        head = _fastest(lambda: negative_log_likelihood(decoder.lm_head(hidden).numpy(), ids.numpy()))
    whole = layer * config.num_hidden_layers + scored * head * config.vocab_size / probe.vocab_size
    return tokens * whole / PROBE_TOKENS


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of three: what a neighbour takes from the others is no property of the work."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
