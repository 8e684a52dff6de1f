"""What a sampler takes of a GPU's memory is what was counted before, whatever its batches ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.plugins.cpu.sampling_calls import NativeRow
from kvfold.plugins.sampling.inputs import Case, make_inputs
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_sampler import DeviceRows, DeviceSampler, SamplerSizes
from tests.runtime.engine import sampling_stand_in
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver


@pytest.mark.parametrize(("rows", "vocab"), [(1, 50), (16, 40_000)])
def test_a_sampler_takes_what_its_sizes_say(tmp_path: Path, rows: int, vocab: int) -> None:
    """Each row has a mask, a bias and counts, which is more than batches mostly have."""
    driver = StandInDriver()
    sampling_stand_in.write_sampling_kernels(tmp_path / "kernels")
    sampling_stand_in.install(driver, tmp_path / "kernels")
    device = Device(driver)
    sampler = DeviceSampler(device, tmp_path / "kernels", rows, vocab)
    sizes = SamplerSizes.of(rows, vocab)
    assert driver.used == sizes.inputs + sizes.results
    inputs = make_inputs(Case(vocab, rows, allowed=0.9, biased=20, seen=20, temperature=1.0, likely=32))
    host = device.allocate_pinned(inputs.logits.nbytes)
    host[:] = inputs.logits.view("u1").ravel()
    logits = device.allocate(inputs.logits.nbytes)
    device.upload(logits, host)
    batch = sampler.batch([NativeRow(row) for row in inputs.rows])
    batch.begin(DeviceRows(logits, tuple(range(rows))))
    assert batch.finish() == 0
    assert driver.used == sizes.together + inputs.logits.nbytes
