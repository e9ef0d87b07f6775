"""Whether the completions of a prompt share it: what the user says, and what the models can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from transformers import PreTrainedModel

from rlsgd.models.calling import class_name
from rlsgd.models.fast_paths import require, say, verdict
from rlsgd.models.scoring import SHARED
from rlsgd.models.shared_prompts import share_prompts, shares_prompts, unshare_prompts

ShareSetting = bool | Literal["auto"]
_FLAG = "--model.share_prompts"


def settle_sharing(
    setting: ShareSetting, models: Iterable[PreTrainedModel], length: int = 0
) -> bool:
    """Let all of the models share prompts, or none; tried out on each. Says once what `auto` means.

    Args:
        setting: `auto` shares where every model can.
        models: policy and, where there is one, reference.
        length: of the longest row to come, in tokens.

    Raises:
        ValueError: the setting is true and a model cannot share.
    """
    models = list(models)
    if not setting:
        return False
    for model in models:
        try:
            share_prompts(model)
            for rows in (0, length):
                require(model, SHARED, flag=f"{_FLAG} true", fix="set it to false", length=rows)
        except ValueError as error:
            if setting is True:
                raise
            for each in models:
                unshare_prompts(each)
            reason = str(error).partition(": ")[2]
            say(models[0], f"{_FLAG} auto: off, every row has its own prompt, since {reason}")
            return False
    if setting == "auto":
        difference = max(verdict(model, SHARED, length).difference for model in models)
        say(
            models[0],
            f"{_FLAG} auto: on; {class_name(models[0])} scores a prompt once for its group, within "
            f"{difference:.1g} nats of the plain pass",
        )
    return all(shares_prompts(model) for model in models)
