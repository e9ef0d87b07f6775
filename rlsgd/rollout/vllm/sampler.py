"""VLLMSampler: completions from a vLLM engine that is given the policy's weights first."""

from __future__ import annotations

import time
import uuid
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.distributed import derived_seed, full_parameters, gathered, process_number
from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.types import Sampled
from rlsgd.models.sharding import compute_device
from rlsgd.rollout.sampler import assemble, left_pad
from rlsgd.rollout.vllm.engine import Engine, EngineCompletion, LocalEngine
from rlsgd.rollout.vllm.server import ServerEngine
from rlsgd.rollout.vllm.weight_sync import WeightSync

# Nats a token by which engine and trainer may differ on average, by the coarser of their dtypes:
# rounding stays well below, other weights well above. From the finest to the coarsest.
TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}


@remembers_arguments
class VLLMSampler:
    """Samples with vLLM: started by each rank on its own device, or a server that runs elsewhere.

    Before every call the engine is sent what changed in the policy since the last one, so it never
    serves stale weights, also after resuming: it starts with random ones. Every completion carries
    the version of the weights that the engine says it was sampled with. The trainer scores each
    rollout as well, and training stops where the two disagree by more than `logprob_tolerance`.

    Args:
        server: address of a running vLLM server, such as `http://gpu2:8000` (see
            rollout/vllm_server.py for how to start one); none starts an engine here.
        transfer: way of the weights to a server: `files` (both see `sync_folder`), or vLLM's own
            between GPUs: `sparse_nccl` for patches, `nccl` for whole models; neither has been run
            yet. An engine here picks its way itself.
        dtype: dtype of the engine's weights and computation: `float32`, `bfloat16` or `float16`.
        max_model_len: tokens of the longest prompt and completion; none means all the positions of
            the model, which costs memory.
        sparse_sync: send only the weights that changed in the engine's dtype. It costs a copy of
            the model in that dtype, in CPU memory; off sends the whole model for every rollout.
        sync_folder: folder of the updates; none means a temporary folder.
        logprob_tolerance: mean absolute difference between the log-probabilities of engine and
            trainer, in nats a token, above which training stops; none means 0.001 where both
            compute in float32, 0.02 where the coarser computes in float16, 0.1 in bfloat16.
        sleep: free the engine's GPU memory, weights included, while the policy is updated; each
            rollout then begins with sending the whole model.
        engine_args: further arguments of `vllm.LLM`, such as `gpu_memory_utilization` or
            `enforce_eager: true`.
    """

    def __init__(
        self,
        server: str | None = None,
        transfer: str = "files",
        dtype: str = "float32",
        max_model_len: int | None = None,
        sparse_sync: bool = True,
        sync_folder: str | None = None,
        logprob_tolerance: float | None = None,
        sleep: bool = False,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        flag = "--model.sampler.init_args."
        if dtype not in TOLERANCES:
            raise ValueError(f"{flag}dtype {dtype!r} must be one of {', '.join(TOLERANCES)}")
        if transfer not in ("files", "nccl", "sparse_nccl"):
            raise ValueError(f"{flag}transfer {transfer!r} must be files, nccl or sparse_nccl")
        if transfer != "files" and server is None:
            raise ValueError(f"{flag}transfer {transfer} is for a server: set {flag}server")
        if server is not None and (sleep or engine_args):
            raise ValueError(f"{flag}sleep and engine_args belong to the server's own command line")
        if logprob_tolerance is not None and logprob_tolerance <= 0:
            raise ValueError(f"{flag}logprob_tolerance must be above 0")
        self.server = server
        self.transfer = transfer
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.sync_folder = sync_folder
        self.given_tolerance = logprob_tolerance
        self.logprob_tolerance = logprob_tolerance or TOLERANCES[dtype]  # see `sample`
        self.sleep = sleep
        self.engine_args = engine_args or {}
        # nccl replaces the whole model, sparse_nccl takes patches alone
        sparse = sparse_sync and transfer != "nccl"
        self.sync = WeightSync(getattr(torch, dtype), sparse=sparse)
        self.engine: Engine | None = None
        self.version = 0  # of the last update, counted in this run
        self.run = ""  # told apart from other runs on the same server, and from none

    def sample(
        self,
        policy: PreTrainedModel,
        prompt_ids: list[list[int]],
        *,
        completions_per_prompt: int,
        max_completion_tokens: int,
        temperature: float,
        stop_token_ids: list[int],
        pad_token_id: int,
        seed: int,
    ) -> Sampled:
        self._check_length(max(map(len, prompt_ids)), max_completion_tokens)
        prompts, prompt_mask = left_pad(prompt_ids, pad_token_id, "cpu")
        if self.given_tolerance is None:
            self.logprob_tolerance = max(
                TOLERANCES[self.dtype], TOLERANCES.get(compute_dtype(policy), 0.0)
            )
        engine = self._started_engine(policy)
        engine.wake_weights()
        metrics = self.push(policy, engine)
        engine.wake_cache()
        groups = engine.generate(
            prompt_ids,
            {
                "n": completions_per_prompt,
                "temperature": temperature,
                "max_tokens": max_completion_tokens,
                "stop_token_ids": stop_token_ids,
                "ignore_eos": True,  # what its config calls so; the stop tokens alone count
                "logprobs": 0,  # of the sampled token alone
                "detokenize": False,
            },
            # vLLM gives the completions of a prompt the seeds after this one
            seeds=[derived_seed(seed, "prompt", i) >> 1 for i in range(len(prompt_ids))],
        )
        if engine.sleep():
            self.sync.forget()
        completions = [completion for group in groups for completion in group]
        self._check_versions(completions)
        rollouts = assemble(
            prompts.repeat_interleave(completions_per_prompt, 0),
            prompt_mask.repeat_interleave(completions_per_prompt, 0),
            padded([torch.tensor(c.token_ids) for c in completions], pad_token_id),
            stop_token_ids,
        )
        if temperature > 0:  # greedy tokens have none
            logprobs = padded([torch.tensor(c.logprobs) for c in completions], 0.0)
            logprobs = torch.cat([torch.zeros(len(logprobs), prompts.shape[1]), logprobs], 1)
            rollouts.sampler_logprobs = logprobs * rollouts.completion_mask
        rollouts.metrics = metrics
        return rollouts.to(compute_device(policy))

    def push(self, policy: PreTrainedModel, engine: Engine) -> dict[str, float]:
        """Send the engine what changed; metrics of the transfer.

        Every rank compares, since a sharded policy is gathered by all of them. Each sends to its
        own engine; a server is sent the update by the first rank. The metrics are of one engine.
        """
        began = time.perf_counter()
        self.run = self.run or gathered([uuid.uuid4().hex[:8]])[0]
        if set(gathered([engine.version()])) != {self.label}:
            self.sync.forget()  # an engine is new, or has been sent the weights of another run
        update = self.sync.update(full_parameters(policy))
        if not update.is_empty:
            self.version += 1
            try:
                if self.server is None or process_number()[0] == 0:
                    engine.receive(update, self.label)
            except BaseException:
                self.sync.forget()
                raise
            gathered([self.version])  # no rank samples from a server before it has them
        seconds = time.perf_counter() - began
        return {
            "sampler/weight_version": float(self.version),
            "sync/seconds": seconds,
            **update.metrics(),
        }

    @property
    def label(self) -> str:
        """What the engine calls the weights that were sent last."""
        return f"{self.run}-{self.version}"

    def close(self) -> None:
        """End the engine; the next call starts another and sends it everything."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _started_engine(self, policy: PreTrainedModel) -> Engine:
        if self.engine is None:
            if self.sleep and compute_device(policy).type == "cpu":
                raise ValueError("--model.sampler.init_args.sleep: vLLM does not sleep on a CPU")
            if self.server is not None:
                self.engine = ServerEngine(self.server, self.transfer, self.sync_folder)
            else:
                self.engine = LocalEngine(
                    policy,
                    dtype=self.dtype,
                    max_model_len=self.max_model_len,
                    sync_folder=self.sync_folder,
                    sleep=self.sleep,
                    engine_args=self.engine_args,
                )
        return self.engine

    def _check_length(self, prompt_tokens: int, completion_tokens: int) -> None:
        if self.max_model_len and prompt_tokens + completion_tokens > self.max_model_len:
            raise ValueError(
                f"--model.sampler.init_args.max_model_len {self.max_model_len}: a prompt of "
                f"{prompt_tokens} tokens and --model.max_completion_tokens {completion_tokens} are "
                f"{prompt_tokens + completion_tokens}"
            )

    def _check_versions(self, completions: list[EngineCompletion]) -> None:
        versions = {version for completion in completions for version in completion.versions}
        if versions != {self.label}:
            raise RuntimeError(
                f"vLLM sampled with weights of version {', '.join(sorted(versions))}, and "
                f"{self.label} was sent; does another run use the same server?"
            )


def compute_dtype(policy: PreTrainedModel) -> str:
    """The dtype that the trainer scores in: autocast's where it is on, else the weights'."""
    kind = compute_device(policy).type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else policy.dtype
    return str(dtype).removeprefix("torch.")


def padded(rows: list[Tensor], filler: float) -> Tensor:
    """Rows of different lengths under each other, filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filler)
