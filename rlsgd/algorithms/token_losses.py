"""TokenLossModule: how losses and figures of single tokens become one number of a minibatch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlsgd.algorithms.verifiable import VerifiableModule
from rlsgd.core.types import Rollouts
from rlsgd.functional.losses import ratio_clip_fractions
from rlsgd.functional.masked import aggregate, aggregation_count, validate_aggregation


class TokenLossModule(VerifiableModule):
    """Aggregates per-token losses, and logs means over tokens.

    Args:
        aggregation: how per-token losses become one number: `token-mean`, `seq-mean-token-mean`,
            `seq-mean-token-sum`, or `seq-mean-token-sum-norm` (divided by max_completion_tokens).
    """

    def __init__(self, aggregation: str = "token-mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        validate_aggregation(aggregation, self.max_completion_tokens)
        self.aggregation = aggregation

    def log_clip_fractions(
        self, ratio: Tensor, batch: Rollouts, clip_low: float, clip_high: float
    ) -> None:
        """Log the shares of tokens whose gradient the clip removes."""
        assert batch.advantages is not None
        fractions = ratio_clip_fractions(
            ratio, batch.advantages, batch.completion_mask, clip_low, clip_high
        )
        for name, clipped in fractions.items():
            self.log_token_mean(name, clipped, batch)

    def aggregate(self, per_token: Tensor, batch: Rollouts) -> Tensor:
        """This microbatch's share of the loss under `--model.aggregation`."""
        assert batch.denominator is not None
        return aggregate(
            per_token,
            batch.completion_mask,
            mode=self.aggregation,
            denominator=batch.denominator,
            max_completion_tokens=self.max_completion_tokens,
        )

    def token_mean(self, per_token: Tensor, batch: Rollouts) -> Tensor:
        """This microbatch's share of the mean over the minibatch's completion tokens."""
        assert batch.num_tokens is not None
        return aggregate(
            per_token, batch.completion_mask, mode="token-mean", denominator=batch.num_tokens
        )

    def log_token_mean(self, name: str, per_token: Tensor, batch: Rollouts) -> None:
        """Log the mean over the minibatch's completion tokens."""
        self.log_share(name, self.token_mean(per_token, batch))

    def denominators(self, minibatch: Rollouts) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss denominator and of the token count of a minibatch."""
        mask = minibatch.completion_mask
        return aggregation_count(mask, self.aggregation), aggregation_count(mask, "token-mean")
