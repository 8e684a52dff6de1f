"""EngineFiles: one built engine of a bundle, with each of its JSON files read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.record import Record
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, Bundle, read_record
from kvfold.runtime.engine.engine_config import ENGINE_FILE, SOURCES, EngineConfig, fingerprint_of
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import UNITS, address_pages, slab_pages


class ModelFacts(Record):
    """What of a bundle's config.json an engine and its plan must agree with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: int
    max_position_embeddings: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int


_BUILD_AGAIN = "build the engine again with `kvfold build`"


@dataclass(frozen=True)
class EngineFiles:
    """What it takes to load an engine.

    Attributes:
        directory: `engine/<target>` of the bundle.
        config: its engine.json.
        plan: the bundle's FoldPlan.
    """

    directory: Path
    config: EngineConfig
    plan: FoldPlan

    @classmethod
    def read(cls, directory: Path, plan: FoldPlan) -> EngineFiles:
        """An engine's directory, of a bundle whose plan is known.

        Raises:
            BundleError: its engine.json is not one, or not of this plan.
        """
        config, groups = EngineConfig.load(directory), {group.name for group in plan.groups}
        if facts := config.tensorrt:
            limits = (facts.decode.max_table_width, facts.prefill.max_table_width, facts.max_pages)
            for of_group in limits:
                if of_group.keys() != groups:
                    raise BundleError(
                        f"{directory / ENGINE_FILE} has limits for groups {', '.join(sorted(of_group))}, the "
                        f"plan's are {', '.join(sorted(groups))}; {_BUILD_AGAIN}"
                    )
        return cls(directory, config, plan)

    @property
    def slab_pages(self) -> dict[str, int]:
        """Pages of a slab of each group, on this engine's device."""
        return slab_pages(self.plan, UNITS[self.config.backend])

    def info(self, kv_cache_bytes: int) -> EngineInfo:
        """What the scheduler must know of this engine, with so much memory for all its pools."""
        slabs, facts = self.slab_pages, self.config.tensorrt
        most = None if facts is None else facts.max_pages
        return EngineInfo(
            plan=self.plan,
            kv_cache_bytes=kv_cache_bytes,
            num_pages=address_pages(self.plan, kv_cache_bytes, slabs, most),
            slab_pages=slabs,
            vocab_size=self.config.vocab_size,
            max_context_length=self.config.max_context_length,
            fingerprint=self.config.fingerprint,
            max_logits=None if facts is None else facts.prefill.max_logits,
        )


def open_engine(bundle: Bundle, target: str) -> EngineFiles:
    """The files of a bundle's engine, each checked.

    Raises:
        BundleError: the bundle has no engine for the target, a file of it is damaged, or files contradict
            each other, whatever the manifest says of them.
    """
    files = EngineFiles.read(bundle.directory(f"engine/{target}"), bundle.plan)
    path, config = files.directory / ENGINE_FILE, files.config
    if config.target != target:
        raise BundleError(
            f"{path} says target {config.target!r:.80}, it lies in the folder of {target}; {_BUILD_AGAIN}"
        )
    digests = {name: bundle.manifest.files[name].sha256 for name in SOURCES if name in bundle.manifest.files}
    if config.fingerprint != fingerprint_of(digests.values()):
        raise BundleError(
            f"{path} was built from other files than the bundle's {', '.join(SOURCES)}; {_BUILD_AGAIN}"
        )
    _check_model(path, files, read_record(bundle.file(CONFIG), ModelFacts))
    return files


def _check_model(path: Path, files: EngineFiles, model: ModelFacts) -> None:
    """See that engine.json (at `path`) and fold.json say of the model what config.json does."""
    config, plan = files.config, files.plan
    for name, key, found, expected in (
        (path.name, "vocab_size", config.vocab_size, model.vocab_size),
        (path.name, "max_context_length", config.max_context_length, model.max_position_embeddings),
        (FOLD_PLAN, "layers", len(plan.layers), model.num_hidden_layers),
        (FOLD_PLAN, "num_attention_heads", plan.num_attention_heads, model.num_attention_heads),
        (FOLD_PLAN, "head_dim", plan.head_dim, model.head_dim),
    ):
        if found != expected:
            raise BundleError(
                f"{path.parent}: {name} says {key} {found}, {CONFIG} {expected}; they do not belong "
                f"together: {_BUILD_AGAIN}"
            )
