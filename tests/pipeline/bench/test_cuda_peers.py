"""Peers on a GPU, over stand-ins: their loops, not their kernels."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kvfold.pipeline.bench.contenders.cuda.transformers_cuda import TransformersCudaContender
from kvfold.pipeline.bench.contenders.cuda.vllm_cuda import VllmContender
from kvfold.pipeline.bench.contenders.transformers import TransformersContender
from kvfold.pipeline.bench.describe_machine import describe_machine
from kvfold.pipeline.commands.measure import bench
from kvfold.runtime.engine.cuda import driver_calls
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status


def tiny_model() -> Any:
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=97, max_position_embeddings=512, **sizes, **heads)
    ).eval()


def test_transformers_with_a_static_cache_says_what_it_says_with_a_dynamic_one() -> None:
    model, decoded = tiny_model(), 0

    def decode(inputs: Any, **how: Any) -> Any:
        nonlocal decoded
        decoded += 1
        assert inputs.shape[1] == 1
        return model(inputs, **how)

    static = TransformersCudaContender(model, decode, lambda: None)
    dynamic = TransformersContender(model)
    first = [3, 1, 4, 1, 5]
    for prompts in ([first], [[2, 7], [1, 8], [9, 9]], [[6] * 20]):
        assert static.generate(prompts, 6).tokens == dynamic.generate(prompts, 6).tokens
    assert decoded == 3 * 5, "every token but a reply's first comes from the compiled step"
    reply = static.generate([first], 6).tokens[0]
    second = [*first, *reply, 8, 8]
    assert static.generate([second], 4).tokens == TransformersContender(model).generate([second], 4).tokens


class StandInVllm:
    """An engine that says one more token of each request a step, the second request a step later."""

    def __init__(self) -> None:
        self.params: list[Any] = []
        self._said: dict[str, list[int]] = {}
        self._steps = 0

    def SamplingParams(self, **given: Any) -> Any:  # noqa: N802, its name in vLLM
        return SimpleNamespace(**given)

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        self.params.append(params)
        self._said[name] = []

    def has_unfinished_requests(self) -> bool:
        return any(len(said) < self.params[-1].max_tokens for said in self._said.values())

    def step(self) -> list[Any]:
        self._steps += 1
        outputs = []
        for index, (name, said) in enumerate(self._said.items()):
            if index < self._steps and len(said) < self.params[-1].max_tokens:
                said.append(10 * index + len(said))
                completion = SimpleNamespace(token_ids=tuple(said))
                outputs.append(SimpleNamespace(request_id=name, outputs=[completion]))
        return outputs


def test_the_machine_names_the_gpu_that_engines_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's first one, which need not be NVML's; without a driver none, and an engine says why."""
    driver = StandInDriver()
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    assert describe_machine("cuda").gpu == "Stand-in GPU"
    assert not driver.count("cuDevicePrimaryCtxRetain"), "a context takes memory from engines"
    for status in (Status.CUDA_ERROR_NO_DEVICE, Status.CUDA_ERROR_OUT_OF_MEMORY):
        driver.fails["cuInit"] = status
        assert describe_machine("cuda").gpu is None


def test_vllm_s_tokens_have_each_their_clock() -> None:
    engine = StandInVllm()
    generation = VllmContender(engine, engine).generate([[1, 2], [3]], 3)
    assert generation.tokens == [[0, 1, 2], [10, 11, 12]]
    assert all(times == sorted(times) and len(times) == 3 for times in generation.arrivals)
    assert generation.arrivals[0][0] < generation.arrivals[1][0]
    assert all(params.ignore_eos and params.temperature == 0 for params in engine.params)


@pytest.mark.parametrize(
    ("arguments", "target", "peers", "workloads"),
    [
        ([], "cpu", "openvino_genai", "full"),
        (["--target", "cuda"], "cuda", "vllm_cuda", "full_on_gpu"),
        (
            ["--target", "cuda", "--peers", "transformers_cuda", "--quick"],
            "cuda",
            "transformers_cuda",
            "quick",
        ),
    ],
)
def test_a_target_brings_its_peers_and_workloads(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], target: str, peers: str, workloads: str
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        bench, "_bench_engines", lambda recipe, output, settings, work: found.append(settings)
    )
    result = CliRunner().invoke(bench.command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert found[0].target == target and peers in found[0].peers and found[0].workloads == workloads
