"""Join LmEvalModel with lm-evaluation-harness, which is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfold.pipeline.quality.subjects import EngineSubject, Subject
from kvfold.pipeline.studies.lm_eval.lm_eval_requests import Generate, LmEvalModel
from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG, open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.engine.load_engine import load_engine
from kvfold.runtime.engine.slabs import bytes_of_slabs
from kvfold.runtime.llm.llm import DEFAULT_TARGET, LLM
from kvfold.runtime.memory.budget import kv_cache_bytes, pages_of_sequence
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.text.tokenizer import BundleTokenizer, Tokenizer


def load_lm_eval_model(bundle: str | Path, target: str = DEFAULT_TARGET) -> Any:
    """A bundle's engine as a model of lm-evaluation-harness.

    Example:
        from lm_eval import simple_evaluate
        simple_evaluate(model=load_lm_eval_model("bundles/compact"), tasks=["hellaswag"])

    Args:
        bundle: the bundle's folder.
        target: which of its engines.

    Raises:
        TargetError: lm-evaluation-harness is not installed, or the engine cannot run here.
        BundleError: there is no bundle, it is damaged, or it has no engine for the target.
    """
    opened, config = open_bundle(bundle), RuntimeConfig()
    files = open_engine(opened, target)
    plan, context, chunk = files.plan, files.config.max_context_length, config.max_num_batched_tokens
    tokenizer = BundleTokenizer.load(opened.file(TOKENIZER), opened.file(TOKENIZER_CONFIG))
    # Two engines, as a subject's pages are not the LLM's: each has pools of its own.
    scorer, answerer = (
        load_engine(files, budget, chunk, config.max_num_seqs)
        for budget in (
            bytes_of_slabs(plan, pages_of_sequence(plan, context, chunk), files.slab_pages),
            kv_cache_bytes(plan, files.slab_pages, config, context),
        )
    )
    llm = LLM(answerer, tokenizer, config)

    def generate(*requests: Any) -> list[str]:
        return [completion.text for completion in llm.generate(*requests)]

    subject = EngineSubject("engine", scorer, chunk)
    return as_lm_eval_model(subject, generate, tokenizer, context, str(bundle))


def as_lm_eval_model(
    subject: Subject, generate: Generate, tokenizer: Tokenizer, context: int, name: str
) -> Any:
    """Any subject as a model of lm-evaluation-harness; arguments and errors as above."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise TargetError(
            f"lm-evaluation-harness is not installed ({error}); run `pip install 'kvfold[lm-eval]'`"
        ) from error

    class KvfoldLM(LmEvalModel, LM):  # type: ignore[misc]  # lm_eval may be absent, so its type is unknown
        """Ours answers; lm_eval's base has its ranks and its cache."""

    return KvfoldLM(subject, generate, tokenizer, context, name)
