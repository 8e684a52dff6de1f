"""Device on a real driver; what it does with a driver that fails is shown without a GPU."""

from __future__ import annotations

import numpy as np

from kvfold.runtime.engine.cuda.device import Device
from tests.gpu.conftest import RecordProperty
from tests.gpu.runs.find_gpu import GpuFacts

MIB = 1 << 20


def test_it_knows_its_gpu(gpu: GpuFacts, device: Device) -> None:
    """The driver and NVML name the same GPU and architecture."""
    assert (device.name, device.architecture) == (gpu.name, gpu.architecture)


def test_bytes_make_the_round_trip(device: Device) -> None:
    """New memory is zero and aligned; what is uploaded comes back."""
    host, address = device.allocate_pinned(1_000_003), device.allocate(1_000_003)
    host[:] = 7
    device.download(host, address)
    device.synchronize()
    assert address % 256 == 0 and not host.any()
    host[:] = expected = np.arange(host.size) % 251
    device.upload(address, host)
    device.synchronize()
    host[:] = 0
    device.download(host[:300], address)
    device.synchronize()
    assert np.array_equal(host[:300], expected[:300]) and not host[300:].any()
    device.download(host, address)
    device.synchronize()
    assert np.array_equal(host, expected)


def test_a_captured_copy_runs_when_it_is_launched(device: Device) -> None:
    """Capturing runs nothing; each launch copies what the host holds then."""
    host, result, address = device.allocate_pinned(64), device.allocate_pinned(64), device.allocate(64)
    host[:] = 1
    graph = device.capture(lambda: device.upload(address, host))
    for value in (0, 2, 3):
        if value:
            host[:] = value
            device.launch(graph)
        device.download(result, address)
        device.synchronize()
        assert (result == value).all()


def test_closing_gives_memory_back(device: Device, record_property: RecordProperty) -> None:
    """Memory of a closed device is free again; the fixture's own keeps the context meanwhile."""
    before = device.free_bytes()
    other = Device.open()
    other.allocate(512 * MIB)
    other.allocate_pinned(MIB)
    other.capture(lambda: None)
    other.synchronize()
    taken = before - device.free_bytes()
    other.close()
    device.activate()
    lost = before - device.free_bytes()
    record_property("taken of 512 MiB", f"{taken / MIB:.1f} MiB")
    record_property("lost", f"{lost / MIB:.1f} MiB")
    assert taken >= 512 * MIB
    assert lost <= 8 * MIB
