"""What was measured on one GPU is not taken for another's."""

from __future__ import annotations

import pytest

from kvfold.pipeline.machine.engine_gpu import gpu_architecture, gpu_name
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.runtime.engine.cuda import driver_calls
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status


@pytest.mark.parametrize("kind", ["validate", "evaluate"])
@pytest.mark.parametrize("target", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_another_card_measures_again(kind: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the card opens no context on it."""
    (stage,) = (stage for stage in STAGES if stage.name == f"{kind}-{target}")

    def on(driver: StandInDriver) -> object:
        monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
        settings = stage.settings(load_recipe("horizon", target))
        assert driver.count("cuInit") and not driver.count("cuDevicePrimaryCtxRetain")
        return settings

    none = StandInDriver()
    none.fails["cuInit"] = Status.CUDA_ERROR_NO_DEVICE
    assert on(StandInDriver(80)) == on(StandInDriver(80))
    assert on(StandInDriver(80)) != on(StandInDriver(90))
    assert on(none) != on(StandInDriver(90))


@pytest.mark.parametrize("kind", ["validate", "evaluate"])
def test_on_the_cpu_no_card_is_looked_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver()
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    (stage,) = (stage for stage in STAGES if stage.name == f"{kind}-cpu")
    stage.settings(load_recipe("horizon", "cpu"))
    assert not driver.calls
    assert gpu_name("cpu") is None and gpu_architecture("cpu") is None


def test_the_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver(90)
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    assert (gpu_name("cuda"), gpu_architecture("cuda")) == ("Stand-in GPU", 90)
    driver.fails["cuInit"] = Status.CUDA_ERROR_OUT_OF_MEMORY
    assert gpu_name("cuda") is None and gpu_architecture("cuda") is None
