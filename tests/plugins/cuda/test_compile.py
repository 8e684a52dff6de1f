"""Every kernel compiles for every architecture, fits it, and computes on tensor cores from SM 80 on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES, AttentionSpec, Variant, variant_of, variants_of
from kvfold.plugins.cuda.compile_kernels import Cubin, compile_library, compile_variant
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.kernels.numerics import INT8_TO_FLOAT16
from kvfold.plugins.cuda.tuning import SHARED_LIMIT
from kvfold.plugins.paged_attention.schema import Attributes, QuantType

# Local memory of one thread: a few registers that ptxas moved aside, not a tile that did not fit.
MAX_SPILL_BYTES = 16


def spec(head_size: int, group: int, activation: str, cache: str, **options: object) -> AttentionSpec:
    quant_type: QuantType = "PER_CHANNEL" if cache == "int8" else "NONE"
    attributes = Attributes(
        num_heads=2 * group,
        kv_num_heads=2,
        scale=head_size**-0.5,
        softcap=float(bool(options.get("softcap"))),
        k_quant_type=quant_type,
        v_quant_type=quant_type,
    )
    extras = {name: bool(options.get(name)) for name in ("qk_norm", "head_sink")}
    page_size = int(str(options.get("page_size", 16)))
    return AttentionSpec(attributes, head_size, page_size, activation, cache, **extras)  # type: ignore[arg-type]


# Each head size, group size, page size, type and option once.
SPECS = {
    "smollm2-mqa": spec(64, 9, "float16", "int8"),
    "llama": spec(128, 4, "bfloat16", "int8", page_size=32, head_sink=True),
    "phi": spec(96, 1, "float16", "float16", page_size=64, qk_norm=True),
    "gemma": spec(256, 2, "bfloat16", "bfloat16", page_size=128, softcap=True),
    "qwen": spec(128, 8, "float16", "int8"),
    "odd": spec(72, 3, "float16", "int8"),
    "between": spec(192, 4, "float16", "float16"),
    "wide-mqa": spec(256, 16, "float16", "int8", page_size=16, qk_norm=True),
}


def supported(one: AttentionSpec, architecture: int) -> bool:
    return architecture > 75 or "bfloat16" not in (one.activation_dtype, one.cache_dtype)


CASES = [
    pytest.param(name, architecture, id=f"{name}-sm{architecture}")
    for name, one in SPECS.items()
    for architecture in ARCHITECTURES
    if supported(one, architecture)
]


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_compiles_within_its_architecture(name: str, architecture: int) -> None:
    for variant in variants_of(SPECS[name]):
        cubin = compile_variant(variant, architecture)
        assert cubin.code.startswith(b"\x7fELF"), variant.name
        assert cubin.kernel.shared_bytes <= SHARED_LIMIT[architecture], variant.name
        assert cubin.kernel.spill_bytes <= MAX_SPILL_BYTES, variant.name
        if variant.kernel in ("prefill", "decode") and architecture > 75:  # Triton has none for SM 75
            check_tensor_cores(variant, cubin)


def check_tensor_cores(variant: Variant, cubin: Cubin) -> None:
    """Dot products are matrix instructions; decoding an int8 cache has them in int8 for q.k."""
    instructions = set(re.findall(r"\b((?:mma|wgmma|tcgen05)[.\w:]*)", cubin.ptx))
    assert any("mma" in instruction for instruction in instructions), (variant.name, instructions)
    if variant.kernel == "decode" and variant.cache_dtype == "int8":
        assert any(".s32.s8.s8.s32" in instruction for instruction in instructions), instructions


@pytest.mark.parametrize("name", ["smollm2-mqa", "qwen"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_prefill_goes_on_while_two_blocks_of_keys_are_loaded(name: str, architecture: int) -> None:
    """Two groups of copies, of K and of V, may be under way where the loop waits for those before."""
    ptx = compile_variant(variant_of("prefill", SPECS[name]), architecture).ptx
    waits = re.findall(r"cp\.async\.wait_group\s+(\w+)", ptx)
    assert waits.count("2") == 2, "one for the loop over full blocks, one for the edges"


@pytest.mark.parametrize("name", ["smollm2-mqa", "qwen"])
def test_prefill_converts_int8_four_at_a_time(name: str) -> None:
    """By bytes, once for all rows, not by an instruction a number."""
    ptx = compile_variant(variant_of("prefill", SPECS[name]), 90).ptx
    assert "0x64646464" in ptx and not re.findall(r"cvt\.\w+\.f16\.s", ptx)
    assert "wgmma.mma_async" in ptx


def test_the_bytes_that_become_float16_are_those_numbers() -> None:
    """The instructions of INT8_TO_FLOAT16, carried out as PTX's manual says, on every int8."""
    values = np.arange(-128, 128, dtype=np.int8)
    found = [number for four in values.reshape(-1, 4) for number in int8_to_float16(four.tobytes())]
    assert found == values.tolist()


def int8_to_float16(four: bytes) -> list[float]:
    """The float16 in registers $0 and $1, of the bytes in register $2."""
    registers = {"$2": int.from_bytes(four, "little")}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 16)

    def halves(register: int) -> np.ndarray:
        return np.array([register], np.uint32).view(np.float16)

    lines = (line.replace(",", " ").split() for line in INT8_TO_FLOAT16.value.strip("{} \n").split(";"))
    for operation, target, *sources in (line for line in lines if line and line[0] != ".reg"):
        given = [value(source) for source in sources]
        if operation == "xor.b32":
            result = given[0] ^ given[1]
        elif operation == "mov.b32":
            result = given[0]
        elif operation == "prmt.b32":
            eight = (given[0] | given[1] << 32).to_bytes(8, "little")
            result = int.from_bytes(bytes(eight[given[2] >> 4 * i & 7] for i in range(4)), "little")
        else:
            assert operation == "sub.f16x2"
            result = int((halves(given[0]) - halves(given[1])).view(np.uint32)[0])
        registers[target] = result
    return [float(number) for name in ("$0", "$1") for number in halves(registers[name])]


def test_sm75_refuses_bfloat16() -> None:
    with pytest.raises(KernelError, match="SM 75 has no bfloat16; set activation_dtype: float16"):
        compile_variant(variant_of("append", SPECS["llama"]), 75)


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="SM 61 has no attention kernels; choose among 75, 80"):
        compile_library([variant_of("merge", SPECS["phi"])], (80, 61), tmp_path)


def test_a_library_is_read_back_and_found_for_each_gpu_that_runs_it(tmp_path: Path) -> None:
    variant = variant_of("merge", SPECS["smollm2-mqa"])
    fractions: list[float] = []
    written = compile_library([variant, variant], (120, 86, 87), tmp_path, fractions.append)
    assert fractions == [0.5, 1.0]  # one variant, SM 120 and SM 86, whose cubin runs on 87
    library = KernelLibrary.load(tmp_path)
    assert library == written
    assert library.find(variant.name, 120).architecture == 120
    assert library.find(variant.name, 89).architecture == 86
    with pytest.raises(KernelError, match="for SM 121"):  # code of sm_120a runs nowhere else
        library.find(variant.name, 121)
    with pytest.raises(KernelError, match=r"no attention kernel merge-.* for SM 80 \(compiled for 86, 120\)"):
        library.find(variant.name, 80)


def test_a_changed_cubin_is_refused(tmp_path: Path) -> None:
    compile_library([variant_of("merge", SPECS["smollm2-mqa"])], (80,), tmp_path)
    (cubin,) = tmp_path.glob("*.cubin")
    cubin.write_bytes(cubin.read_bytes()[:-1])
    with pytest.raises(KernelError, match=r"\.cubin is not the recorded kernel; build the engine again"):
        KernelLibrary.load(tmp_path)
