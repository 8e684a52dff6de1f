"""How far an engine's logits may be from others over the tiny recipe's texts."""

from __future__ import annotations

import numpy as np

from kvfold.pipeline.quality.logit_measures import measure_distance
from tests.gpu.conftest import RecordProperty
from tests.gpu.read_texts import DECODED

# Mean KL in nat a token. In brackets what ONNX's reference evaluator, on a CPU, gave of the same lowered
# graphs for prefill and decode. A window that is off by one gave 0.007 to the CPU engine, no sinks 0.02.
MAX_KL_TO_CPU = 0.005  # both with int8 linears and caches, rounded at other places (0.0029, 0.0019)
MAX_KL_TO_FOLDED = 0.02  # float32 throughout: what int8 costs comes on top (0.0128, 0.0041)
MAX_KL_OF_INT8_CACHE = 3e-4  # both with int8 caches, float16 linears to float32 (3.5e-5, 2.1e-5)
MAX_KL_OF_FLOAT16 = 1e-4  # float16 linears and caches to float32 (5e-6, 5e-6)


# Rounds by eight times as much, and KL goes with the square.
MAX_KL_OF_BFLOAT16 = 64 * MAX_KL_OF_FLOAT16


def check_logits(
    record: RecordProperty, name: str, reference: np.ndarray, actual: np.ndarray, allowed: float
) -> None:
    """Hold logits [N, L, vocab_size] of `read_texts` against others: prefill and decode steps apart."""
    assert np.isfinite(actual).all()
    for kind, part in (("prefill", np.s_[:, :DECODED]), ("decode", np.s_[:, DECODED:])):
        shape = (-1, reference.shape[-1])
        distance = measure_distance(reference[part].reshape(shape), actual[part].reshape(shape))
        kl, same = distance.kl.mean(), distance.same_top1.mean()
        record(f"KL({name}), {kind}", f"{kl:.1e} (allowed {allowed:.0e}), top-1 agreement {same:.3f}")
        assert kl <= allowed
