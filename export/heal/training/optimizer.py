"""What changes the trained tensors: Muon for matrices, AdamW for the rest.

Muon steps along the orthogonal matrix nearest to the averaged gradient, so that directions which text visits
rarely learn as fast as the loud ones (https://kellerjordan.github.io/posts/muon/). On SmolLM2 under the plan
of the recipe `character`, 80 updates of 1,024 tokens at 2.5e-4, from one start at 0.709 nat, ended at 0.746
with AdamW and at 0.717 with a prototype of this, on text that was held out, one seed each: so short a run
does not win back its own noise, but Muon's noise harms less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.95)
# A head sink is a logit, whose unit is 1; the weights that a rate is chosen for are of hundredths. AdamW
# moves either by about the rate an update, so at the weights' rate a logit would stay where it started.
HEAD_SINK_RATE = 30.0


class Optimizer:
    """Muon and AdamW as one, neither with weight decay; a rate moves elements of both by like amounts."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """`parameters` by name, float32 leaves with gradients at each step."""
        matrices = [tensor for tensor in parameters.values() if tensor.ndim == 2]
        sinks = [tensor for name, tensor in parameters.items() if name.endswith(".sinks")]
        vectors = [x for name, x in parameters.items() if x.ndim != 2 and not name.endswith(".sinks")]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        groups = [{"params": vectors, "share": 1.0}, {"params": sinks, "share": HEAD_SINK_RATE}]
        if groups := [group for group in groups if group["params"]]:
            self._parts.append(torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0))

    def clear(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """One update of every parameter."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            part.step()

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {type(part).__name__: part.state_dict() for part in self._parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an optimiser of the same parameters."""
        for part in self._parts:
            part.load_state_dict(state[type(part).__name__])
