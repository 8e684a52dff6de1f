"""What a search is going to measure, and about how long that takes here."""

from __future__ import annotations

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.search.costs import layer_changes
from kvfold.pipeline.recipe.recipe import SearchSection
from kvfold.pipeline.studies.outlook import Task, seconds_to_read
from kvfold.pipeline.studies.search.ledger import LedgerFile


def search_tasks(settings: SearchSection, config: ModelConfig, ledger: LedgerFile) -> list[Task]:
    """What is not in the ledger yet; nothing where every change of a layer is."""
    from kvfold.export.search.examine import KL_STRIDE

    changes = list(layer_changes(config, settings.sliding_windows))
    missing = [change for change in changes if change.name not in ledger.costs]
    if not missing:
        return []
    read, layers = 0.0, config.num_hidden_layers
    for change in missing:
        prompts = settings.prompts * settings.prompt_length if change.kind == "bank" else 0
        read += (settings.kl_tokens + prompts) * (layers - change.layers[0]) / layers
    return [
        *([] if ledger.tokens else [Task(f"have {settings.text.tokens:,} tokens of text")]),
        Task(
            f"measure {len(missing)} changes of layers on {settings.kl_tokens:,} tokens",
            seconds_to_read(config, read, scored=1 / KL_STRIDE),
        ),
        Task("find the layers that must stay global"),
        Task(f"fold and measure whole plans, {settings.plans} at most"),
    ]
