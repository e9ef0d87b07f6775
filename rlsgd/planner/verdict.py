"""Whether a run fits its GPU, from its settings alone, before anything expensive."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rlsgd.planner.architecture import Architecture
from rlsgd.planner.optimizers import measure_optimizer
from rlsgd.planner.plan import Plan, plan
from rlsgd.planner.report import readable
from rlsgd.planner.setup import Setup

PRECISIONS = {"32-true": "32-true", "bf16-true": "bf16-true"}  # all others have float32 masters


def setup_of(settings: dict[str, Any], gpus: int) -> Setup | None:
    """How `rlsgd fit` would train with these settings; none where the planner does not know it.

    Args:
        settings: of model, data and trainer, complete, as in a run's config.yaml.
        gpus: that train.
    """
    model, data = (settings[part].get("init_args") or {} for part in ("model", "data"))
    trainer, sampler = settings["trainer"], model.get("sampler") or {}
    kind = sampler.get("class_path", "HFSampler").rpartition(".")[2]
    if "prompts_per_epoch" not in data or kind != "HFSampler":
        return None  # supervised, or sampled by an engine, which has a budget of its own
    strategy = trainer.get("strategy")
    name = strategy if isinstance(strategy, str) else (strategy or {}).get("class_path", "")
    rows = data["prompts_per_epoch"] // gpus * data["group_size"]
    microbatches = model["minibatches"] * trainer.get("accumulate_grad_batches", 1)
    precision = str(trainer.get("precision") or "32-true")
    return Setup(
        precision=PRECISIONS.get(precision, "bf16-mixed"),  # pyright: ignore[reportArgumentType]
        gpus=gpus,
        strategy="fsdp" if "FSDP" in name else "ddp",
        microbatch=max(1, -(-rows // microbatches)),
        prompts_per_epoch=data["prompts_per_epoch"],
        group_size=data["group_size"],
        minibatches=model["minibatches"],
        max_prompt_tokens=data["max_prompt_tokens"],
        max_completion_tokens=model["max_completion_tokens"],
        share_prompts=model.get("share_prompts") is True,
        activation_checkpointing=model["activation_checkpointing"],
        reference=bool(model["kl_coef"]),
        critic=model.get("shared_backbone") is False,
        sampler_batch_size=(sampler.get("init_args") or {}).get("batch_size", 0),
    )


def plan_of(settings: dict[str, Any], architecture: Architecture, setup: Setup) -> Plan:
    """The plan of these settings."""
    given = settings["model"]["init_args"]["optimizer"]
    spec = given if isinstance(given, str) else json.dumps(given)
    return plan(architecture, measure_optimizer(spec, setup.dtypes.weight), setup)


def require_fit(
    settings: dict[str, Any], architecture: Architecture, setup: Setup, gpu_bytes: float
) -> None:
    """Refuse a run whose peak is more than a GPU has.

    Raises:
        ValueError: names the flag, the bytes, and what would fit.
    """
    planned = plan_of(settings, architecture, setup)
    if planned.peak <= gpu_bytes:
        return
    numbers = (
        f"`rlsgd memory` plans {readable(planned.peak)} at {planned.peak_moment}, and a GPU here "
        f"has {readable(round(gpu_bytes))}"
    )
    if planned.peak_moment in ("prefill", "decoding"):
        rows = min(setup.rows, setup.sampler_batch_size or setup.rows)
        cache = readable(planned.moments[planned.peak_moment].get("KV cache", 0))
        while rows := rows // 2:
            fewer = plan_of(settings, architecture, replace(setup, sampler_batch_size=rows))
            if fewer.peak <= gpu_bytes:
                raise ValueError(
                    f"--model.sampler.init_args.batch_size {setup.sampler_batch_size}: {numbers} "
                    f"({cache} of it keys and values). Set it to {rows}, so that as many "
                    "completions are sampled at a time"
                )
    raise ValueError(
        f"--trainer.devices {setup.gpus}: {numbers}. Have less in a microbatch "
        "(--trainer.accumulate_grad_batches), set --model.activation_checkpointing true, or shard "
        "over more GPUs (configs/trainer/fsdp.yaml)"
    )
