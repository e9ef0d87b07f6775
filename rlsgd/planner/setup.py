"""Setup: how a model is trained, as far as memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from rlsgd.planner.batches import Batch, Dtypes, SharedBatch

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Strategy = Literal["fsdp", "ddp"]
SamplerName = Literal["HFSampler", "VLLMSampler", "server"]
Accelerator = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Setup:
    """How the model is trained. Defaults are those of arXiv:2602.07729, section 4, for maths.

    Args:
        precision: of the trainer. Under bf16-mixed weights, gradients and optimizer states are
            float32 (the weights are the master copies) and computation is bfloat16; under bf16-true
            all are bfloat16 and there is no master copy.
        gpus: that train, of all nodes together.
        strategy: of several GPUs: `fsdp` shares out weights, gradients and states
            (rlsgd.models.strategy.FSDP2Strategy), `ddp` has all of them on every GPU.
        accelerator: `cpu` plans one process on a CPU, to compare with what is measured there.
        microbatch: completions that one forward pass sees, on each GPU. An optimizer that steps
            inside the backward pass cannot accumulate: it sees the whole minibatch instead.
        prompts_per_epoch: prompts of one rollout, over all GPUs.
        group_size: completions of each prompt.
        minibatches: optimizer steps from a rollout.
        max_prompt_tokens: of the longest prompt.
        max_completion_tokens: of the longest completion.
        share_prompts: the completions of a prompt in a microbatch share one pass through it
            (`--model.share_prompts`).
        activation_checkpointing: compute each layer again in the backward pass.
        reference: a frozen reference policy is held (`--model.kl_coef` above 0).
        critic: a critic with a backbone of its own is trained by the same optimizer (PPO).
        sampler: `HFSampler` (the policy itself), `VLLMSampler` (an engine beside the policy on
            every GPU) or `server` (engines on other GPUs).
        sampler_item: bytes of a number in an engine's weights and cache.
        one_copy: the engine beside the policy samples from the trainer's own weights, and its cache
            is released during updates (docs/one-copy.md): a plan, which no run can have yet.
        sampler_batch_size: completions that HFSampler generates at a time; 0 is all of a GPU's.
    """

    precision: Precision = "bf16-mixed"
    gpus: int = 1
    strategy: Strategy = "fsdp"
    accelerator: Accelerator = "gpu"
    microbatch: int = 1
    prompts_per_epoch: int = 256
    group_size: int = 4
    minibatches: int = 1
    max_prompt_tokens: int = 1024
    max_completion_tokens: int = 2048
    share_prompts: bool = False
    activation_checkpointing: bool = False
    reference: bool = False
    critic: bool = False
    sampler: SamplerName = "HFSampler"
    sampler_item: int = 2
    one_copy: bool = False
    sampler_batch_size: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                raise ValueError(f"--{name} {value}: must be one of {', '.join(choices)}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "sampler_batch_size" else 1
            if field.type == "int" and value < least:
                raise ValueError(f"--{field.name} {value}: must be at least {least}")
        if self.accelerator == "cpu" and (self.gpus > 1 or self.precision != "32-true"):
            raise ValueError("--accelerator cpu: plans one process with --precision 32-true alone")
        if self.prompts_per_epoch % self.gpus:
            raise ValueError(
                f"--prompts_per_epoch {self.prompts_per_epoch}: cannot be divided among --gpus "
                f"{self.gpus}; make it a multiple"
            )
        if self.one_copy and (self.sampler, self.precision) != ("VLLMSampler", "bf16-true"):
            raise ValueError(
                "--one_copy true: needs --sampler VLLMSampler and --precision bf16-true, so that "
                "trainer and engine hold the same numbers"
            )
        if self.one_copy and self.sharded:
            raise ValueError("--one_copy true: an engine needs whole weights; use --strategy ddp")
        if self.minibatches > self.rows:
            raise ValueError(
                f"--minibatches {self.minibatches}: more than the {self.rows} completions of a GPU"
            )

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp" and self.gpus > 1

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the weights."""
        return self.gpus if self.sharded else 1

    @property
    def rows(self) -> int:
        """Completions of a rollout on one GPU."""
        return self.prompts_per_epoch // self.gpus * self.group_size

    @property
    def minibatch(self) -> int:
        """Completions of one optimizer step on one GPU."""
        return -(-self.rows // self.minibatches)

    @property
    def accumulates(self) -> bool:
        """Whether an optimizer step takes several microbatches."""
        return self.minibatch > self.microbatch

    @property
    def tokens(self) -> int:
        return self.max_prompt_tokens + self.max_completion_tokens

    @property
    def batch(self) -> Batch:
        """One microbatch; a row alone is cut to its length, so that nothing in it is padding.

        Its last token predicts nothing, and the model does not see it.
        """
        rows = min(self.microbatch, self.minibatch)
        shape = {"rows": rows, "tokens": self.tokens - 1, "scored": self.max_completion_tokens}
        if not self.share_prompts:
            return Batch(**shape, padded=rows > 1)
        repeats = self.accelerator == "gpu"
        return SharedBatch(**shape, padded=False, prompts=self.prompts, repeats_keys=repeats)

    @property
    def prompts(self) -> int:
        """Prompts of one microbatch, at most.

        Whole groups stay together where the microbatch has room for them. A smaller one may begin
        and end within a group; several minibatches are drawn at random from all completions.
        """
        rows, most = min(self.microbatch, self.minibatch), self.prompts_per_epoch // self.gpus
        if self.minibatches == 1 and rows % self.group_size == 0:
            return rows // self.group_size
        if self.minibatches == 1:
            return min(rows, -(-(rows - 1) // self.group_size) + 1, most)
        return min(rows, most)

    @property
    def dtypes(self) -> Dtypes:
        """Under bf16-mixed FSDP2 gathers weights in bfloat16, and the residual stream is so too."""
        if self.precision == "32-true":
            return Dtypes(4, 4, 4)
        if self.precision == "bf16-true":
            return Dtypes(2, 2, 2)
        return Dtypes(4, 2, 2 if self.sharded else 4)
