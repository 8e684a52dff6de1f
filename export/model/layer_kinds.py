"""What differs from layer to layer in a config.json: windows and kinds of RoPE."""

from __future__ import annotations

from collections.abc import Mapping

from kvfold.export.model.family import Family, Metadata, count, number, positive
from kvfold.export.model.rope_config import LinearRope, Llama3Rope, LongRope, YarnRope
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

FULL, SLIDING = "full_attention", "sliding_attention"
MOST_LAYERS = 10_000  # more are refused by ModelConfig
ROPE_TYPES = "default, linear, dynamic, llama3, yarn and longrope"
# Parameters of plain RoPE, and those by which other models change it.
PLAIN_PARAMETERS = frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor"))
CHANGED_BY = frozenset(("mrope_section", "mrope_interleaved", "alpha", "short_mscale", "long_mscale"))


def sliding_windows(family: Family, known: Metadata) -> list[int | None]:
    """By layer, the config's window; None where it has none, or one that hides nothing of the context."""
    types = layer_types(family, known)
    window = count(known, "sliding_window") if SLIDING in types else None
    if SLIDING in types and window is None:
        raise CheckpointError(
            f"config.json: layer_types of {family.name} names {SLIDING}, but there is no sliding_window"
        )
    context = count(known, "max_position_embeddings")
    hides = window is not None and (context is None or window < context)
    return [window if hides and kind == SLIDING else None for kind in types]


def layer_types(family: Family, known: Metadata) -> list[str]:
    """By layer, `full_attention` or `sliding_attention`: as the config says, or as its family does."""
    layers, given = layer_count(known), known.get("layer_types")
    if given is None:
        return [SLIDING if each else FULL for each in _windowed(family, known, layers)]
    if not isinstance(given, list) or len(given) != layers:
        raise CheckpointError(
            f"config.json: layer_types must be a list with a name for each of {layers} layers, not "
            f"{given!r:.80}"
        )
    for kind in given:
        if kind not in (FULL, SLIDING):
            raise UnsupportedModelError(
                f"{family.name} with a layer of type {kind!r:.40}: supported are {FULL} and {SLIDING}"
            )
    if SLIDING in given and not known.get("use_sliding_window", True):
        raise CheckpointError(
            f"config.json: layer_types names {SLIDING}, but use_sliding_window is off; make them agree"
        )
    return given


def layer_count(known: Metadata) -> int:
    """Layers; 0 where the config has no valid number of them, which ModelConfig then reports."""
    layers = known.get("num_hidden_layers")
    return layers if isinstance(layers, int) and 0 < layers <= MOST_LAYERS else 0


def _windowed(family: Family, known: Metadata, layers: int) -> list[bool]:
    window = known.get("sliding_window")
    if window is None or not known.get("use_sliding_window", True):
        return [False] * layers
    match family.window_layers:
        case "none":
            return [False] * layers
        case "all":
            return [True] * layers
        case "from_max_window_layers":
            first = number(known, "max_window_layers") or 0
            return [index >= first for index in range(layers)]
        case "without_rope":
            return [not turns for turns in turning_layers(known, layers)]
        case "all_but_each_last":
            run = count(known, "sliding_window_pattern") or 1
            return [(index + 1) % run != 0 for index in range(layers)]


def turning_layers(known: Metadata, layers: int) -> list[bool]:
    """By layer, whether it has RoPE at all (smollm3)."""
    given = known.get("no_rope_layers")  # 1 where a layer has RoPE, for all its name
    if given is None:
        run = count(known, "no_rope_layer_interval")
        return [run is None or (index + 1) % run != 0 for index in range(layers)]
    if not isinstance(given, list) or len(given) != layers or not all(each in (0, 1) for each in given):
        raise CheckpointError(
            f"config.json: no_rope_layers must be a list with 1 (RoPE) or 0 for each of {layers} layers, not "
            f"{given!r:.80}"
        )
    return [bool(each) for each in given]


def ropes(family: Family, known: Metadata) -> tuple[list[dict[str, object]], list[int]]:
    """The kinds of RoPE of a config, as fields of Rope, and by layer which it is.

    Both generations of keys are read: `rope_theta` and `rope_scaling`, or transformers 5's
    `rope_parameters`, which may be one for each type of layer.
    """
    by_type = _rope_by_type(family, known)
    types = layer_types(family, known)
    turns = turning_layers(known, len(types))
    layers: list[dict[str, object]] = [
        by_type[kind] if turning else {"partial_rotary_factor": 0.0}
        for kind, turning in zip(types, turns, strict=True)
    ]
    kinds: list[dict[str, object]] = []
    for rope in layers:
        if rope not in kinds:
            kinds.append(rope)
    return kinds or [by_type[FULL]], [kinds.index(rope) for rope in layers]


def _rope_by_type(family: Family, known: Metadata) -> dict[str, dict[str, object]]:
    parameters = known.get("rope_parameters") or known.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"config.json: rope parameters must be an object, not {parameters!r:.80}")
    local = number(known, "rope_local_base_freq")
    plain = {} if local is None else {"rope_theta": local}
    if not any(isinstance(value, Mapping) for value in parameters.values()):
        given = {FULL: parameters, SLIDING: parameters if local is None else plain}
    elif unknown := parameters.keys() - {FULL, SLIDING}:
        raise UnsupportedModelError(
            f"rope parameters for layers of type {min(map(str, unknown))!r:.40}: supported are "
            f"{FULL} and {SLIDING}"
        )
    else:
        own = {kind: parameters.get(kind) or {} for kind in (FULL, SLIDING)}
        for kind, each in own.items():
            if not isinstance(each, Mapping):
                raise CheckpointError(
                    f"config.json: rope parameters of {kind} must be an object, not {each!r:.80}"
                )
        given = {FULL: own[FULL], SLIDING: {**plain, **own[SLIDING]}}
    return {kind: _rope(family, known, each) for kind, each in given.items()}


def _rope(family: Family, known: Metadata, parameters: Metadata) -> dict[str, object]:
    """Fields of Rope."""
    share = parameters.get("partial_rotary_factor", known.get("partial_rotary_factor"))
    if share not in (None, 1) and not family.reads("partial_rotary_factor"):
        raise UnsupportedModelError(
            f"{family.name} with partial_rotary_factor = {share!r:.40}: RoPE of this family must turn every "
            "channel of a head"
        )
    if changed := sorted(CHANGED_BY & parameters.keys()):
        raise UnsupportedModelError(
            f"{family.name} with {changed[0]} among its rope parameters: what that does is not implemented"
        )
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind is None and parameters.keys() - PLAIN_PARAMETERS:
        raise CheckpointError(f"config.json: rope parameters name no rope_type: {dict(parameters)!r:.80}")
    if kind == "su" or (kind == "yarn" and "short_factor" in parameters):
        kind = "longrope"  # its names in the first files of phi3
    return {
        "theta": parameters.get("rope_theta") or known.get("rope_theta") or 10_000.0,
        "scaling": scaling_fields(kind, {**parameters, **_contexts(kind, known, parameters)}),
        "partial_rotary_factor": 1.0 if share is None else share,
    }


def _contexts(kind: object, known: Metadata, parameters: Metadata) -> dict[str, object]:
    """Parameters that follow from the model's contexts where the config does not say them."""
    context = positive(known, "max_position_embeddings")
    before = positive(known, "original_max_position_embeddings")
    inside = positive(parameters, "original_max_position_embeddings")
    if kind in ("linear", "llama3"):
        return {"factor": positive(parameters, "factor")}
    if kind == "longrope":
        if before and inside and before != inside:
            raise CheckpointError(
                f"config.json: original_max_position_embeddings is {before}, and {inside} among the rope "
                "parameters; make them agree (a family may have a default for one that is left out)"
            )
        extension = None if before else positive(parameters, "factor")
        return {"original_max_position_embeddings": before or inside or context, "extension": extension}
    if kind == "yarn":
        trained = inside or before or context
        ratio = context / trained if context and trained else None
        return {
            "original_max_position_embeddings": trained,
            "factor": positive(parameters, "factor") or ratio,
        }
    return {}


def scaling_fields(kind: object, parameters: Metadata) -> dict[str, object] | None:
    """The fields of a scaling; None for plain RoPE, which `dynamic` is up to the model's context.

    Raises:
        UnsupportedModelError: nobody knows the kind.
    """
    if kind in (None, "default", "none", "dynamic"):
        return None
    for scheme in (LinearRope, Llama3Rope, YarnRope, LongRope):
        fields = scheme.model_fields
        if kind == fields["rope_type"].default:
            given = {key: parameters[key] for key in fields if parameters.get(key) is not None}
            return {**given, "rope_type": kind}
    raise UnsupportedModelError(f"rope type {kind!r:.40} is not supported; supported are {ROPE_TYPES}")
