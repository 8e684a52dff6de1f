"""lm-eval's API models, unchanged, against a server: `python lm_eval_tasks.py URL MODEL TOKENIZER_FOLDER`."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS = [
    {"question": "The grass is", "choices": [" green", " a number", " loud"], "answer": 0},
    {"question": "Two and two are", "choices": [" four", " blue"], "answer": 0},
]
KINDS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}}{{choices[0]}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "said": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def evaluate(
    model: str, arguments: dict[str, Any], kinds: list[str], data: Path, **more: Any
) -> dict[str, Any]:
    """The metrics of each task."""
    from lm_eval import simple_evaluate

    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "" if kinds == ["rolling"] else "{{question}}",
    }
    tasks = [{"task": f"kvfold_{kind}", **common, **KINDS[kind]} for kind in kinds]
    found = simple_evaluate(model, model_args=arguments, tasks=tasks, bootstrap_iters=0, **more)
    assert found is not None
    assert set(found["results"]) == {f"kvfold_{kind}" for kind in kinds}
    return dict(found["results"])


def main(url: str, model: str, tokenizer: str) -> None:
    """Each task by each API that it can use; raises at the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "rows.jsonl"
        data.write_text("\n".join(map(json.dumps, ROWS)))
        completions = {
            "model": model,
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "tokenizer_backend": "huggingface",
            "max_length": 1024,
        }
        told = []
        for tokenized in (True, False):
            arguments = {**completions, "tokenized_requests": tokenized, "num_concurrent": 2}
            told.append(
                evaluate("local-completions", arguments, ["choice", "said"], data)
                | evaluate("local-completions", arguments, ["rolling"], data)
            )
        assert told[0]["kvfold_rolling"] == told[1]["kvfold_rolling"]
        assert math.isfinite(told[0]["kvfold_rolling"]["byte_perplexity,none"])
        assert told[0]["kvfold_choice"] == told[1]["kvfold_choice"]
        chat = {"model": model, "base_url": f"{url}/v1/chat/completions"}
        evaluate("local-chat-completions", chat, ["said"], data, apply_chat_template=True)
        print(json.dumps(told[0]))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    main(*sys.argv[1:])
