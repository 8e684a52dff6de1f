"""lm-evaluation-harness's tasks on a bundle: the adapter, and what answers its requests."""

from kvfold.pipeline.studies.lm_eval.lm_eval_model import load_lm_eval_model

__all__ = ["load_lm_eval_model"]
