"""What a trainer is given here that Lightning would not give it."""

from __future__ import annotations

from typing import Any

from rlsgd.cli.folders import default_loggers

OBSERVERS = (
    "IterationProgress",
    "UpdateSparsity",
    "EffectiveRank",
    "Memory",
    "CompletionLog",
    "CallbackTime",
)


def trainer_defaults() -> dict[str, Any]:
    """Trainer settings that differ from Lightning's. Loggers share one folder for each run."""
    return {
        "trainer.callbacks": [{"class_path": f"rlsgd.callbacks.{name}"} for name in OBSERVERS],
        "trainer.logger": default_loggers(),
        "trainer.log_every_n_steps": 1,
        # model and metrics go from `validate` on to `fit`, where inference tensors are refused
        "trainer.inference_mode": False,
        "trainer.num_sanity_val_steps": 0,  # the base is validated in full before training instead
    }
