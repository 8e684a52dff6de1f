"""Source files that a text's tokens come from; tests/pipeline/stages/test_stages.py follows the imports."""

from __future__ import annotations

TEXT_CODE = (
    "pipeline/texts",
    "pipeline/workspace/fetch.py",
    "pipeline/workspace/stage.py",
    "pipeline/workspace/workspace.py",
    "pipeline/workspace/write_bundle.py",
    *("export/checkpoint", "export/graph", "export/model", "export/quantize/precision.py"),
    "plugins/contract/chat_template.py",
    "plugins/contract/fold_plan.py",
    "plugins/contract/plan_presets.py",
    "plugins/contract/step.py",
    "plugins/contract/tokenizer_config.py",
    "plugins/cpu",
    "plugins/cuda/attention_spec.py",
    "plugins/int8_linear",
    "plugins/paged_attention",
    "plugins/tensorrt/node_form.py",
    "runtime/checks.py",
    "runtime/engine/engine_config.py",
    "runtime/engine/onnxruntime_engine.py",
    "runtime/engine/protocol.py",
    "runtime/memory",
    "runtime/metrics.py",
    "runtime/runtime_config.py",
    "runtime/sampling",
    "runtime/scheduler",
)
