"""What one call launches, down to every value, from descriptions and addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.calls import Launch, resolve, workspace_bytes, workspace_of
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import Shapes, workspace_sizes
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER, SPEC

CONSUMING = replace(SPEC, writes=False)
WORKSPACE = 1 << 40
PRODUCED = {name: 1000 * (index + 1) for index, name in enumerate((*PRODUCER.inputs, "output"))}
DONATED = {name: 1000 * (index + 1) for index, name in enumerate((*DONOR.inputs, "output"))}
CONSUMED = {name: 1000 * (index + 1) for index, name in enumerate((*CONSUMER.inputs, "output"))}
DECODE, PREFILL = (
    Shapes(tokens=5, sequences=5, table_width=12),
    Shapes(tokens=40, sequences=3, table_width=12),
)


@pytest.fixture
def kernels(tmp_path: Path) -> KernelLibrary:
    return fake_kernels((SPEC, CONSUMING), (80, 90), tmp_path)


def values(launch: Launch) -> dict[str, int | float]:
    names = launch.kernel.arguments
    return dict(zip(names, (value for _, value in launch.arguments), strict=True))


def test_decoding_appends_then_reads_in_splits_then_merges(kernels: KernelLibrary) -> None:
    launches = resolve(kernels, 80, SPEC, DECODE, PRODUCED, WORKSPACE)
    assert [launch.kernel.symbol for launch in launches] == ["append", "decode", "merge"]
    # A window of 40 keys touches 2 splits of 64, the sinks 1 more: fewer than the table's 12 * 32 / 64.
    assert [launch.grid for launch in launches] == [(5, 6, 1), (3, 2, 5), (5, 6, 1)]


def test_prompts_append_then_run_in_tiles(kernels: KernelLibrary) -> None:
    launches = resolve(kernels, 80, SPEC, PREFILL, PRODUCED, WORKSPACE)
    assert [launch.kernel.symbol for launch in launches] == ["append", "prefill"]
    assert [launch.grid for launch in launches] == [(40, 6, 1), (40 // 16 + 1 + 3, 2, 1)]


def test_scratch_buffers_lie_one_after_another(kernels: KernelLibrary) -> None:
    append, decode, merge = (values(each) for each in resolve(kernels, 80, SPEC, DECODE, PRODUCED, WORKSPACE))
    sizes = workspace_sizes(SPEC, DECODE, split_keys=64)
    address = WORKSPACE
    for name, size in sizes.items():
        assert decode[name] == address
        address += size
    assert append["rotated_query"] == decode["rotated_query"]
    assert [merge[name] for name in list(sizes)[1:]] == [decode[name] for name in list(sizes)[1:]]
    assert merge["splits"] == decode["splits"] == 3


def test_packed_keys_and_values_are_addresses_inside_the_query(kernels: KernelLibrary) -> None:
    append = values(resolve(kernels, 80, SPEC, DECODE, PRODUCED, WORKSPACE)[0])
    assert append["key"] == PRODUCED["query"] + 6 * 64 * 2
    assert append["value"] == append["key"] + 2 * 64 * 2
    assert append["query_stride"] == append["kv_stride"] == (6 + 2 * 2) * 64


def test_keys_and_values_apart_from_the_query(kernels: KernelLibrary) -> None:
    append = values(resolve(kernels, 80, SPEC, DECODE, DONATED, WORKSPACE)[0])
    assert (append["key"], append["value"]) == (DONATED["key"], DONATED["value"])
    assert (append["query_stride"], append["kv_stride"]) == (6 * 64, 2 * 64)


def test_what_a_node_does_not_have_is_null(kernels: KernelLibrary) -> None:
    """A consumer's query is not packed, so no address inside it is a key's."""
    append, prefill = resolve(kernels, 80, CONSUMING, PREFILL, CONSUMED, WORKSPACE)
    absent = ("key", "value", "slot_mapping", "q_norm_weight", "k_norm_weight")
    assert [values(append)[name] for name in absent] == [0] * 5
    assert values(append)["query_stride"] == 6 * 64
    assert append.kernel.variant.endswith("writes0")
    assert values(prefill)["key_cache"] == CONSUMED["key_cache"]


def test_every_argument_has_its_kind_and_value(kernels: KernelLibrary) -> None:
    prefill = resolve(kernels, 80, SPEC, PREFILL, PRODUCED, WORKSPACE)[1]
    assert dict(zip(prefill.kernel.arguments, prefill.arguments, strict=True)) == {
        "rotated_query": ("pointer", WORKSPACE),
        "key_cache": ("pointer", PRODUCED["key_cache"]),
        "value_cache": ("pointer", PRODUCED["value_cache"]),
        "cumulative_sequence_length": ("pointer", PRODUCED["cumulative_sequence_length"]),
        "past_seqlens": ("pointer", PRODUCED["past_seqlens"]),
        "block_table": ("pointer", PRODUCED["block_table"]),
        "head_sink": ("pointer", 0),
        "k_scale": ("pointer", PRODUCED["k_scale"]),
        "v_scale": ("pointer", PRODUCED["v_scale"]),
        "output": ("pointer", PRODUCED["output"]),
        "sequences": ("int32", 3),
        "table_width": ("int32", 12),
        "kv_num_heads": ("int32", 2),
        "window": ("int32", 40),
        "sinks": ("int32", 4),
        "scale": ("float32", 0.125),
        "softcap": ("float32", 0.0),
    }


def test_the_gpus_own_cubin_or_an_earlier_minors_is_taken(kernels: KernelLibrary) -> None:
    def architecture(gpu: int) -> int:
        return resolve(kernels, gpu, SPEC, DECODE, PRODUCED, WORKSPACE)[0].kernel.architecture

    assert (architecture(80), architecture(86), architecture(90)) == (80, 80, 90)
    with pytest.raises(
        KernelError, match=r"no attention kernel decode-\S+ for SM 120 \(compiled for 80, 90\)"
    ):
        resolve(kernels, 120, SPEC, DECODE, PRODUCED, WORKSPACE)


def test_scratch_memory_suffices_for_calls_that_decode_in_a_prefill_profile(kernels: KernelLibrary) -> None:
    wide = replace(SPEC, attributes=replace(SPEC.attributes, local_window_size=-1, sink_size=0))
    largest = Shapes(tokens=40, sequences=32, table_width=400)
    decoding = sum(workspace_sizes(wide, Shapes(32, 32, 400), split_keys=64).values())
    assert decoding > sum(workspace_sizes(wide, largest, split_keys=64).values())
    assert workspace_bytes(kernels, (80, 90), wide, largest) == decoding


def test_scratch_memory_of_a_call_is_that_of_what_it_does(kernels: KernelLibrary) -> None:
    """A prompt has no splits, however wide its table is."""
    wide = replace(SPEC, attributes=replace(SPEC.attributes, local_window_size=-1, sink_size=0))
    decoding = Shapes(tokens=5, sequences=5, table_width=4000)
    assert workspace_of(kernels, 80, wide, decoding) == sum(workspace_sizes(wide, decoding, 64).values())
    prompt = replace(decoding, tokens=40)
    assert (
        workspace_of(kernels, 80, wide, prompt) == 2 * 40 * 6 * 64 < workspace_of(kernels, 80, wide, decoding)
    )


def test_scratch_memory_suffices_for_the_architecture_with_the_smallest_splits(
    kernels: KernelLibrary,
) -> None:
    changed = tuple(
        kernel.model_copy(update={"constants": {"split_keys": 32}})
        if kernel.symbol == "decode" and kernel.architecture == 90
        else kernel
        for kernel in kernels.kernels
    )
    library = kernels.model_copy(update={"kernels": changed})
    most = sum(workspace_sizes(SPEC, DECODE, split_keys=32).values())
    assert workspace_bytes(library, (80, 90), SPEC, DECODE) == most
    assert workspace_bytes(library, (80,), SPEC, DECODE) < most


@pytest.mark.parametrize("field", ["arguments", "grid"])
def test_a_library_of_another_version_is_refused(kernels: KernelLibrary, field: str) -> None:
    changed = tuple(
        each.model_copy(update={field: ("lanes", *getattr(each, field)[1:])}) for each in kernels.kernels
    )
    library = kernels.model_copy(update={"kernels": changed})
    with pytest.raises(KernelError, match="'lanes', which is unknown; build the engine again"):
        resolve(library, 80, SPEC, PREFILL, PRODUCED, WORKSPACE)
