"""Checks of the machine itself: CPU, memory, disk, GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import psutil

from kvfold.pipeline.machine.doctor.finding import Finding
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.plugins.contract.byte_sizes import format_bytes

CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm")
CPUINFO = Path("/proc/cpuinfo")
# The demo holds the original, the folded and the smoothed weights in float32, and writes four graphs.
DEMO_MEMORY = 6 * 1024**3
DEMO_DISK = 4 * 1024**3


def check_cpu() -> Finding:
    """Model, cores and the instruction sets that matter to the kernels."""
    flags, model = _cpuinfo()
    present = [flag for flag in CPU_FLAGS if flag in flags]
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {psutil.cpu_count()} threads"
    return Finding("CPU", "ok", f"{model}, {cores}; {' '.join(present) or 'no instruction set listed'}")


def _cpuinfo() -> tuple[set[str], str]:
    """Flags and model name; Linux lists them, elsewhere only the architecture is known."""
    if not CPUINFO.is_file():
        return set(), platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return set(flags.split()), fields.get("model name") or platform.machine()


def check_memory() -> Finding:
    """Whether the demo model fits."""
    memory = psutil.virtual_memory()
    detail = f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}"
    if memory.available < DEMO_MEMORY:
        return Finding("memory", "problem", detail, f"free {format_bytes(DEMO_MEMORY)} for `kvfold demo`")
    return Finding("memory", "ok", detail)


def check_disk() -> Finding:
    """Whether a bundle of the demo model fits where bundles are written."""
    free = shutil.disk_usage(Path.cwd()).free
    if free < DEMO_DISK:
        action = f"free {format_bytes(DEMO_DISK)}, or choose another disk with --output"
        return Finding("disk", "problem", f"{format_bytes(free)} free here", action)
    return Finding("disk", "ok", f"{format_bytes(free)} free here")


def check_gpu() -> Finding:
    """NVIDIA GPUs that the driver reports, and which targets suit each."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "absent", "no NVIDIA driver (nvidia-smi not found); the cpu target needs none")
    query = [tool, "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines()
        return Finding(
            "GPU", "problem", f"nvidia-smi fails: {' '.join(reason[:1])}", "repair the NVIDIA driver"
        )
    return Finding("GPU", "ok", "; ".join(map(_with_targets, result.stdout.strip().splitlines())))


def _with_targets(line: str) -> str:
    """A line of nvidia-smi's, and what runs on that GPU."""
    _, _, capability, *_ = [*line.split(", "), "", "", ""]
    if not capability.replace(".", "").isdigit():  # an old driver, or a GPU that does not tell
        return line
    architecture = int(capability.replace(".", ""))
    gpu_targets = [target for target in TARGETS.values() if target.backend != "cpu"]
    reasons = {target.name: target.why_not_on(architecture) for target in gpu_targets}
    suits = ", ".join(name for name, reason in reasons.items() if reason is None)
    others = "".join(f"; not {name}: {reason}" for name, reason in reasons.items() if reason)
    return (
        f"{line}: suits the targets {suits}{others}"
        if suits
        else f"{line}: suits the target cpu alone{others}"
    )
