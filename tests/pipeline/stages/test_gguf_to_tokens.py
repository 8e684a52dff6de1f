"""A GGUF file with a SentencePiece vocabulary, from the file to a session."""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGMLQuantizationType

from kvfold import LLM, SamplingParams
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.pipeline.workspace.stage import target_stage
from tests.export.tiny_checkpoints import random_model
from tests.export.tiny_gguf import write_gguf
from tests.pipeline.tiny_bundles import run_recipe
from tests.root import ROOT

VOCABULARY = json.loads(
    (ROOT / "tests/export/checkpoint/data/llama_cpp_vocabularies.json").read_text(encoding="utf-8")
)["sentencepiece"]
# As Phi-3's: a line end behind each control token, which takes it in.
TEMPLATE = (
    "{% for m in messages %}<user>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<user>\n{% endif %}"
)
RECIPE = """
model: {source: model.gguf}
plan: {preset: character, sliding_window: 64, sink_size: 4, global_every: 3}
calibration: {source: text.txt, tokens: 256, sequence_length: 64}
"""


def test_a_phi3_file_talks(tmp_path: Path) -> None:
    model = random_model(
        "phi3",
        vocab_size=len(VOCABULARY["tokens"]),
        num_hidden_layers=3,
        hidden_size=64,
        intermediate_size=64,
        sliding_window=200,
    )
    write_gguf(
        tmp_path / "model.gguf",
        model,
        GGMLQuantizationType.Q8_0,
        sentencepiece=VOCABULARY,
        name="Phi3 tiny",
        chat_template=TEMPLATE,
    )
    (tmp_path / "text.txt").write_text((ROOT / "docs" / "architecture.md").read_text()[:4000])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run_recipe(tmp_path, "recipe", tmp_path / "bundle", until=target_stage("build", "cpu"))
    llm = LLM.load(tmp_path / "bundle")
    original = load_checkpoint(tmp_path / "model.gguf").tokenizer.backend
    assert llm.generator.tokenizer.encode("the cache é") == [1, *original.encode("the cache é").ids]
    session = llm.session()
    sampled = SamplingParams(max_tokens=12, ignore_eos=True)
    first = session.send("what is a cache", sampled)
    second = session.send("and a fold", sampled)
    assert first.text and second.text
    assert second.usage.reused_tokens >= first.usage.prompt_tokens, "the first turn was found again"
