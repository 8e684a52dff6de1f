"""What a stage's result comes from beside the stages before it: settings of the recipe, and source code."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.recipe.evaluate_section import SHIPPED_PASSAGES
from kvfold.pipeline.recipe.recipe import DEMO_MODEL, HealSection, Recipe
from kvfold.pipeline.recipe.recipe_sections import KEYWORDS, Texts, TextSection
from kvfold.pipeline.texts.text_code import TEXT_CODE
from kvfold.runtime.bundle import TOKENIZER, hash_file

# Source that a stage's result comes from; tests/pipeline/stages/test_stages.py follows the imports.
EVERY_STAGE = (
    "pipeline/stages/stage_inputs.py",
    "pipeline/stages/stage_work.py",
    "pipeline/stages/stages.py",
    "pipeline/workspace/workspace.py",
)
MODEL = (*EVERY_STAGE, "export/model", "plugins/contract/fold_plan.py", "plugins/contract/plan_presets.py")
CHECKPOINT = (*MODEL, "export/checkpoint", "plugins/contract/tokenizer_config.py")
TEXT = (*CHECKPOINT, *TEXT_CODE)
HEAL = (*CHECKPOINT, "export/fold", "export/heal", "export/quantize", "plugins/int8_linear")
GRAPH = (
    *MODEL,
    "export/graph",
    "export/quantize/precision.py",
    "plugins/cuda/attention_spec.py",
    "plugins/int8_linear",
    "plugins/paged_attention",
    "plugins/contract/step.py",
    "plugins/tensorrt/node_form.py",
)
FACTS = ("pipeline/build/engine_facts.py", "runtime/engine/engine_config.py", "runtime/engine/protocol.py")
GPU_KERNELS = ("plugins/cuda", "plugins/tensorrt")
ENGINE = (
    *GPU_KERNELS,
    "runtime/engine",
    "plugins/cpu",
    "plugins/int8_linear",
    "plugins/paged_attention",
    "plugins/contract/step.py",
)
SUBJECTS = (
    *CHECKPOINT,
    *ENGINE,
    "pipeline/quality",
    "runtime/checks.py",
    "runtime/runtime_config.py",
    "runtime/memory",
    "runtime/scheduler/step_builder.py",
)
REPORT = (
    "pipeline/report",
    "pipeline/show",
    "pipeline/quality/validate/measurements.py",
    "plugins/contract/kv_bytes.py",
    "pipeline/workspace/tool_versions.py",
    "export/quantize/precision.py",
)


def describe_source(recipe: Recipe) -> object:
    """The source and, for local files, their sizes and times: hashing gigabytes on every run is no option.

    When these change, the checkpoint stage hashes the content; later stages go by that alone. A
    tokenizer.json beside a GGUF file is read instead of the file's own vocabulary. The demo model is no path.
    """
    if recipe.model.source == DEMO_MODEL:
        return DEMO_MODEL
    path = Path(recipe.model.source)
    files = sorted(path.rglob("*")) if path.is_dir() else [path, path.parent / TOKENIZER]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]
    return [recipe.model.source, stats]


def fingerprint_text(section: TextSection) -> object:
    """Which text a section asks for: settings, its file's name and content; what is fetched is pinned."""
    content = None if section.source in KEYWORDS else hash_file(Path(section.source))
    return [section.description, content, section.tokens, section.sequence_length, section.seed]


def fingerprint_texts(sections: Texts) -> object:
    """Of each text."""
    return [fingerprint_text(section) for section in sections]


def describe_evaluation(recipe: Recipe) -> object:
    """What `kvfold eval` measures, the passages by content; its text is another stage's."""
    section = recipe.evaluate
    shipped = section.last_words == SHIPPED_PASSAGES
    passages = None if shipped else [Path(section.last_words).name, hash_file(Path(section.last_words))]
    others = section.model_dump(mode="json", exclude={"source", "last_words"})
    return [others, section.description, passages, recipe.validate_on.prefill_chunk]


def describe_fold(recipe: Recipe) -> object:
    """Plan and dials, and the content of the adapter that stands in for folding."""
    adapter = hash_file(recipe.adapter) if recipe.adapter else None
    return [recipe.plan.model_dump(mode="json"), recipe.fold.model_dump(mode="json"), adapter]


def describe_heal(recipe: Recipe) -> object:
    """The dials that decide the result; texts count by the tokens they gave."""
    if not isinstance(recipe.heal, HealSection):
        return None
    quantize = recipe.quantize.model_dump(mode="json") if recipe.heal.int8_tokens else None
    excluded = {"text", "start", "checkpoint_seconds"}
    start = recipe.heal.start and hash_file(Path(recipe.heal.start))
    return [recipe.heal.model_dump(mode="json", exclude=excluded), start, quantize]


def describe_tensorrt(recipe: Recipe) -> object:
    """What decides a TensorRT engine."""
    from kvfold.pipeline.build.tensorrt.architectures import build_settings

    return build_settings(recipe)
