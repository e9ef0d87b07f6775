"""What a GPU needs of the vLLM path, as far as a CPU can prove it: order, dtypes and the device."""

import os
import sys
import threading
import types

import pytest
import torch
from torch import nn

from rlsgd.core.types import Sampled
from rlsgd.models.loading import load_policy
from rlsgd.rollout import VLLMSampler
from rlsgd.rollout.kv_cache import GenerationCache
from rlsgd.rollout.vllm import engine as engines
from rlsgd.rollout.vllm.engine import EngineCompletion, LocalEngine, _engine_environment
from rlsgd.rollout.vllm.weight_sync import WeightSync, read_update, write_update


class RecordedLLM:
    """vLLM's interface, as far as it is used; notes every call."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, *args, *(f"{k}={v}" for k, v in kwargs.items())))

        return call


def sleeping_engine(calls, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: calls.append(("empty_cache",)))
    engine = object.__new__(LocalEngine)
    engine.llm, engine.sleeps, engine.ipc, engine.sync_folder = RecordedLLM(calls), True, None, None
    engine.current = "default"
    monkeypatch.setattr(LocalEngine, "version", lambda self: self.current)

    def receive(self, update, version):
        calls.append(("receive", "whole" if update.is_whole else "patches"))
        self.current = version

    def generate(self, prompt_ids, settings, seeds):
        calls.append(("generate",))
        one = EngineCompletion([5, 1], [-0.5, -0.5], [self.current])
        return [[one] * settings["n"] for _ in prompt_ids]

    monkeypatch.setattr(LocalEngine, "receive", receive)
    monkeypatch.setattr(LocalEngine, "generate", generate)
    return engine


def sample(sampler, policy) -> Sampled:
    return sampler.sample(
        policy,
        [[3, 4]],
        completions_per_prompt=2,
        max_completion_tokens=4,
        temperature=1.0,
        stop_token_ids=[1],
        pad_token_id=0,
        seed=0,
    )


def test_memory_is_freed_before_weights_wake_and_the_cache_wakes_last(tiny_llama, monkeypatch):
    policy, calls = load_policy(str(tiny_llama)), []
    sampler = VLLMSampler()
    sampler.engine = sleeping_engine(calls, monkeypatch)
    for _ in range(2):  # the second time nothing has changed, but sleeping has lost the weights
        sample(sampler, policy)
    once = [
        ("empty_cache",),
        ("wake_up", "tags=['weights']"),
        ("receive", "whole"),
        ("wake_up", "tags=['kv_cache']"),
        ("generate",),
        ("sleep", "level=2"),
    ]
    assert calls == [*once, *once]


@pytest.mark.parametrize(
    "engine_dtype, autocast, tolerance",
    [
        ("float32", None, 1e-3),
        ("float32", torch.bfloat16, 0.1),
        ("bfloat16", None, 0.1),
        ("bfloat16", torch.bfloat16, 0.1),
        ("float16", torch.bfloat16, 0.1),
        ("float16", None, 0.02),
    ],
)
def test_the_coarser_of_engine_and_trainer_sets_the_tolerance(
    tiny_llama, monkeypatch, engine_dtype, autocast, tolerance
):
    policy, sampler = load_policy(str(tiny_llama)), VLLMSampler(dtype=engine_dtype)
    sampler.engine = sleeping_engine([], monkeypatch)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        sample(sampler, policy)
    assert sampler.logprob_tolerance == tolerance
    named = VLLMSampler(dtype=engine_dtype, logprob_tolerance=0.007)
    named.engine = sampler.engine
    with torch.autocast("cpu", torch.bfloat16):
        sample(named, policy)
    assert named.logprob_tolerance == 0.007


def test_what_was_sent_last_stays_on_the_weights_device(tmp_path):
    """A device without memory: anything that is moved to the CPU raises."""
    sync, weight = WeightSync(torch.bfloat16), torch.zeros(8, 4)
    moved = []
    original = torch.Tensor.to

    def to(self, *args, **kwargs):
        moved.extend(a for a in args if isinstance(a, str | torch.device))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "cpu", lambda self: pytest.fail("copied to the CPU"))
        sync.update({"w": weight}.items())
        weight[2, 1] = 1.0
        update = sync.update({"w": weight}.items())
    assert not moved
    assert update.num_changed == 1
    write_update(update, tmp_path / "update.safetensors")
    assert read_update(tmp_path / "update.safetensors").patches["w"].nbytes == 1 + 2


def test_a_first_update_costs_one_copy(tmp_path):
    weight = nn.Parameter(torch.zeros(8, 4))
    sync = WeightSync(torch.float32)
    update = sync.update({"w": weight}.items())
    assert update.tensors["w"].data_ptr() == sync.sent["w"].data_ptr() != weight.data_ptr()


def test_keys_are_kept_in_the_dtype_that_attention_computes_in(tiny_llama):
    policy = load_policy(str(tiny_llama))
    cache = GenerationCache(policy.config, limit=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            policy(input_ids=torch.tensor([[3, 4]]), past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16


def test_the_environment_is_restored_without_being_emptied(monkeypatch):
    """Another thread reads a variable all the while; afterwards the trainer's own are back."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SEEN_BY_ALL", "yes")
    missing, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            if "SEEN_BY_ALL" not in os.environ:
                missing.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    before = dict(os.environ)
    for _ in range(200):
        with _engine_environment(torch.device("cpu")):
            assert "RANK" not in os.environ and "VLLM_LOGGING_LEVEL" in os.environ
            os.environ["LD_PRELOAD_BY_ENGINE"] = "x"
    stop.set()
    thread.join()
    after = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    assert after == {k: v for k, v in before.items() if not k.startswith("VLLM_")}
    assert not missing


def test_graphs_are_recorded_on_a_gpu_alone(tiny_llama, monkeypatch):
    asked = []

    class LLM(RecordedLLM):
        def __init__(self, **arguments):
            asked.append(arguments)
            super().__init__([])
            self.llm_engine = types.SimpleNamespace(engine_core=None)

    fake = types.ModuleType("vllm")
    fake.LLM = LLM  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(engines, "_report_death", lambda client: None)
    monkeypatch.setattr(engines.atexit, "register", lambda close: None)
    options = {"dtype": "float32", "max_model_len": None, "sync_folder": None, "sleep": False}
    policy = load_policy(str(tiny_llama))
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(engines, "compute_device", lambda _, d=device: torch.device(d))
        LocalEngine(policy, **options, engine_args={})
    assert [arguments.get("enforce_eager") for arguments in asked] == [True, None]
