"""What RLModule refuses before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsgd.core.flags import flags
from rlsgd.functional.aggregation import validate_aggregation
from rlsgd.functional.kl import validate_kl_estimator

if TYPE_CHECKING:
    from rlsgd.algorithms.rl import RLModule


def check_max_completion_tokens(max_completion_tokens: int) -> None:
    """Raise ValueError unless it is positive."""
    if max_completion_tokens < 1:
        raise ValueError("max_completion_tokens must be at least 1")


def check_group_size(module: RLModule, group_size: int) -> None:
    """Refuse a group size that gives no advantages."""
    if group_size < module.smallest_group:
        raise ValueError(
            f"--data.group_size {group_size}: {type(module).__name__} compares the completions "
            f"of a prompt with each other; use at least {module.smallest_group}"
        )


def check_arguments(module: RLModule) -> None:
    """Refuse arguments that cannot work, by themselves or together.

    Raises:
        ValueError: names the flag, and the fix.
    """
    if module.temperature <= 0:
        raise ValueError("--model.temperature must be above 0: exploration needs sampling")
    if module.inner_epochs < 1 or module.minibatches < 1:
        raise ValueError("--model.inner_epochs and --model.minibatches must be at least 1")
    if module.entropy_coef < 0:
        raise ValueError("--model.entropy_coef must not be negative")
    with flags("--model."):
        check_max_completion_tokens(module.max_completion_tokens)
        validate_aggregation(module.aggregation, module.max_completion_tokens)
        validate_kl_estimator(module.kl_estimator)
    if module.kl_coef < 0:
        raise ValueError("--model.kl_coef must not be negative")
    if module.kl_coef and not module.kl_in_loss and module.kl_estimator != "k1":
        raise ValueError(
            f"--model.kl_estimator must be k1 (got {module.kl_estimator}): "
            f"{type(module).__name__} has its KL in the reward, where no other estimator has the "
            "gradient of the KL"
        )
    if module.kl_coef and module.random_weights:
        raise ValueError(
            "--model.kl_coef needs --model.random_weights false: the reference is loaded"
        )
