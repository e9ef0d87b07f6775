"""Every way of computing that is not the plain one, and the proof that it says the same.

The plain way to score a completion: its row alone, the token ids and nothing else, no cache, one
full pass in eval mode. Whatever differs from it (padding, a cache, several prompts in a sequence,
recomputed activations, another kernel) is a path, is registered here with `fast_path`, and is used
after `verdict` or `require` has compared it with the plain way on the model that is loaded. A few
short rows are enough, and longer ones where the config has a length at which a model changes its
ways: a sliding window, a chunk, the original length of a scaled rotary embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PretrainedConfig, PreTrainedModel

from rlsgd.core.distributed import global_max
from rlsgd.models.calling import class_name
from rlsgd.models.comparing import PLAIN, FastPath, Plain, Score, Verdict, compare
from rlsgd.models.sharding import compute_device, is_sharded

_LENGTHS = re.compile(
    r"(?<!max_)window|chunk|block_size|original_max_position|local_attention|topk$|scale$"
)


REGISTRY: dict[str, FastPath] = {}


def fast_path(
    name: str, *, train_mode: bool = True, gradients: bool = True, plain: Plain = PLAIN
) -> Callable[[Score], Score]:
    """Enter a way of scoring into the registry.

    Args:
        name: in messages; begins what "differs" or "fails".
        train_mode: the mode that the path is used in.
        gradients: whether it is differentiated.
        plain: what it has to equal.
    """

    def enter(score: Score) -> Score:
        assert name not in REGISTRY
        REGISTRY[name] = FastPath(score, train_mode, gradients, plain)
        return score

    return enter


_VERDICTS: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, int], Verdict]] = WeakKeyDictionary()
_SAID: WeakKeyDictionary[PreTrainedModel, set[str]] = WeakKeyDictionary()


def verdict(model: PreTrainedModel, name: str, length: int = 0) -> Verdict:
    """Compare a registered path with the plain way, once for a model and a kind of length.

    Leaves the model, its gradients and the global random numbers as they were. Ranks that share a
    sharded model must ask together.

    Args:
        model: as it will be used, on its device.
        name: of the path.
        length: of the longest row that the path will be used for, in tokens.
    """
    threshold = _crossed(model, length)
    known = _VERDICTS.setdefault(model, {})
    if (name, threshold) not in known:
        known[name, threshold] = compare(model, REGISTRY[name], threshold=threshold)
    return known[name, threshold]


def require(model: PreTrainedModel, name: str, *, flag: str, fix: str, length: int = 0) -> None:
    """Refuse a path that the model does not compute right.

    Raises:
        ValueError: names flag, model class, path, measured difference and what to do, in one line.
    """
    found = verdict(model, name, length)
    if not found.holds:
        raise _refusal(model, name, flag, fix, length)


def choose(
    model: PreTrainedModel, rungs: dict[str, str], *, flag: str, fix: str, length: int = 0
) -> str:
    """The first path that the model computes right; a later one is said once.

    Args:
        model: see `verdict`.
        rungs: names of paths, the best first, with what is said when one is taken after another
            failed.
        flag: what the user wrote, or could write.
        fix: what to do where none is right.
        length: see `verdict`.

    Raises:
        ValueError: none of them is right.
    """
    failed = ""
    for name, consequence in rungs.items():
        found = verdict(model, name, length)
        if found.holds:
            if failed:
                say(model, f"{class_name(model)}: {failed}; {consequence}", warn=True)
            return name
        failed = failed or f"{name} {found}"
    raise _refusal(model, list(rungs)[-1], flag, fix, length)


def _refusal(model: PreTrainedModel, name: str, flag: str, fix: str, length: int) -> ValueError:
    text = f"{flag}: {class_name(model)}: {name} {verdict(model, name, length)}; {fix}"
    threshold = _crossed(model, length)
    if threshold and verdict(model, name).holds:
        text += (
            f". Rows of up to {threshold} tokens are right: --data.max_prompt_tokens and "
            "--model.max_completion_tokens decide"
        )
    return ValueError(text)


def say(model: PreTrainedModel, text: str, *, warn: bool = False) -> None:
    """Tell the user something of a model, once."""
    said = _SAID.setdefault(model, set())
    if text not in said:
        said.add(text)
        (rank_zero_warn if warn else rank_zero_info)(text)


# ---- lengths at which a model changes its ways

_THRESHOLDS: WeakKeyDictionary[PreTrainedModel, list[int]] = WeakKeyDictionary()


def thresholds(config: PretrainedConfig | dict[str, Any]) -> list[int]:
    """The lengths that a config names, below which a model may compute otherwise than above.

    >>> thresholds({"sliding_window": 4096, "rope": {"original_max_position_embeddings": 512}})
    [512, 4096]
    """
    values = config if isinstance(config, dict) else vars(config)
    found = set()
    for name, value in values.items():
        if isinstance(value, dict | PretrainedConfig):
            found.update(thresholds(value))
        elif isinstance(value, int) and value > 4 and _LENGTHS.search(str(name)):
            found.add(value)
    return sorted(found)


def _crossed(model: PreTrainedModel, length: int) -> int:
    """The largest threshold that rows of this length cross; 0 for none."""
    if model not in _THRESHOLDS:
        _THRESHOLDS[model] = thresholds(model.config.get_text_config())
    lengths = _THRESHOLDS[model]
    if lengths and is_sharded(model):
        length = int(global_max(torch.tensor(length, device=compute_device(model))))
    return max((threshold for threshold in lengths if threshold < length), default=0)
