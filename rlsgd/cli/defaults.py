"""Settings as they were written: every class runs with its own defaults.

jsonargparse fills the defaults in before it reads what the user wrote, and on a change of class it
keeps every argument that both classes have. A default of the old class then runs in the new one:
AdamW with SGD's weight decay, because SGD is the default. So the command line is read twice: first
without any defaults, which gives what was written and nothing else, and then with them, where a
class that is not the default's takes nothing from it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints
from jsonargparse._common import parser_context
from jsonargparse._link_arguments import skip_apply_links
from jsonargparse._required import iter_required_keys
from jsonargparse._subcommands import find_action
from jsonargparse._typehints import ActionTypeHint, is_optional, is_subclass_spec
from jsonargparse._util import import_object, resolved_import_paths
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlsgd import ROOMS

_discard = _typehints.discard_init_args_on_class_path_change
_as_namespace = _typehints.subclass_spec_as_namespace
_check_type = ActionTypeHint._check_type


# kinds of classes in which a word means the same whatever the class: `lr`, `policy`, `group_size`
SHARING = (Optimizer, LRScheduler, LightningModule, LightningDataModule)


def keep_class_paths() -> None:
    """Let configs say `rlsgd.algorithms.GRPO`, as they always did, though `rlsgd.GRPO` is shorter.

    A path that changes would be another class to whoever goes on with a run.
    """
    for room in ROOMS:
        module = importlib.import_module(f"rlsgd.{room}")
        for name in module.__all__:
            resolved_import_paths.add(getattr(module, name), f"{module.__name__}.{name}")


class Carried:
    """What was written for one class and met another: kept where it means the same there."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}

    def __call__(self, parser: Any, old: Any, new: Any) -> None:
        """Leave in `old` what the class of `new` has as well, and note it."""
        if not _is_other_class(old, new):
            return
        before = _arguments(old)
        if _shares_words(new["class_path"]):
            _discard(parser, old, new)
        else:
            _drop(parser, old, new)
        after = _arguments(old)
        kept, lost = self.seen.setdefault((old["class_path"], new["class_path"]), ({}, {}))
        given = new.get("init_args")
        named = set(_arguments(new)) if isinstance(given, (dict, Namespace)) else set()
        kept.update({key: value for key, value in after.items() if key not in named})
        lost.update({key: value for key, value in before.items() if key not in after})

    def lines(self, written: Namespace) -> list[str]:
        """One line for each change of class that the final settings still show."""
        lines = []
        for (old, new), (kept, lost) in self.seen.items():
            final = [spec for spec in _specs(written) if spec["class_path"] == new]
            kept = {
                key: value
                for key, value in kept.items()
                if any(_arguments(spec).get(key) == value for spec in final)
            }
            if not final or not (kept or lost):
                continue
            old, new = old.rpartition(".")[2], new.rpartition(".")[2]
            parts = [f"{new} keeps {_listed(kept)}"] if kept else []
            parts += [f"{new} does not take {_listed(lost)}"] if lost else []
            lines.append(f"{' and '.join(parts)}, written for {old}")
        return lines


def parse_written(parser: ArgumentParser, argv: Sequence[str], defaults: Mapping[str, Any]) -> Any:
    """The settings of a command line with subcommand, each class with its own defaults.

    What was written for one class and is kept for another is said on stderr.

    Args:
        parser: has the subcommands.
        argv: the command line.
        defaults: of dotted keys of the subcommand; `key+` appends to those that are lists.

    Raises:
        ValueError: null is written where a value has to be.
    """
    action: Any = parser._subcommands_action
    command = next((word for word in argv if word in action.choices), None)
    prints = [word for word in argv if word.startswith("--print_config")]
    if command is None or {"-h", "--help"} & set(argv):
        return parser.parse_args(argv)
    start = Namespace({command: Namespace()})
    for key, value in defaults.items():
        if isinstance(value, list):
            start[f"{command}.{key}"] = [Namespace(spec) for spec in value]
    carried = Carried()
    with _rules(carried), skip_apply_links():
        written = parser.parse_args(
            [word for word in argv if word not in prints],
            namespace=start,
            defaults=False,
            _skip_validation=True,
        )
    with _rules(_drop):
        _refuse_nulls(action.choices[command], written[command])
        if rank_zero_only.rank == 0:
            for line in carried.lines(written[command]):
                print(f"rlsgd: {line}", file=sys.stderr)
        return parser.parse_args([command, *prints], namespace=written)


def _shares_words(class_path: str) -> bool:
    """Whether an argument means the same in all classes of this kind: not so in tasks, rewards."""
    found = import_object(class_path)
    return isinstance(found, type) and issubclass(found, SHARING)


def _drop(parser: Any, old: Any, new: Any) -> None:
    """Defaults of one class are nothing to another."""
    if _is_other_class(old, new):
        old["init_args"] = Namespace()


@contextmanager
def _rules(on_other_class: Any) -> Iterator[None]:
    """jsonargparse with another rule for changes of class, lists that replace, and nulls."""

    def check_type(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None):
        before = None if append or cfg is None else cfg.get(self.dest)
        if isinstance(before, list) and isinstance(_loaded(value), list):
            cfg = Namespace()  # items of the list before are not the defaults of this one's
        return _check_type(self, value, append=append, cfg=cfg, mode=mode)

    def as_namespace(val: Any, prev_val: Any = None) -> Any:
        spec: Any = _as_namespace(val, prev_val)
        nested = spec.get("init_args") if isinstance(spec, Namespace) else None
        if isinstance(nested, _typehints.NestedArg) and not isinstance(nested.val, str):
            # it becomes text again: as JSON it stays what it is, where Python has None for null
            spec["init_args"] = nested._replace(val=json.dumps(nested.val, default=str))
        return spec

    _typehints.discard_init_args_on_class_path_change = on_other_class
    _typehints.subclass_spec_as_namespace = as_namespace
    ActionTypeHint._check_type = check_type
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = _discard
        _typehints.subclass_spec_as_namespace = _as_namespace
        ActionTypeHint._check_type = _check_type


def _loaded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "- ")):
        return _typehints.parse_value_or_config(value, enable_path=False)[0]
    return value


def _is_other_class(old: Any, new: Any) -> bool:
    return bool(old and old.get("init_args") and old["class_path"] != new["class_path"])


def _arguments(spec: Any) -> dict[str, Any]:
    spec = _as_namespace(spec)
    return dict(spec.get("init_args", Namespace()).items(branches=True, nested=False))


def _specs(value: Any) -> Iterator[Any]:
    """Every class with its arguments in the settings, also inside others."""
    if is_subclass_spec(value):
        yield value
    if isinstance(value, (Namespace, dict)):
        for inner in (vars(value) if isinstance(value, Namespace) else value).values():
            yield from _specs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _specs(inner)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if is_subclass_spec(value):
        return value["class_path"].rpartition(".")[2]
    return json.dumps(value, default=lambda inner: str(inner)).strip('"')


def _refuse_nulls(parser: Any, written: Namespace, flag: str = "-") -> None:
    """Refuse null where the argument's type has no None: it would become the text "None".

    Raises:
        ValueError: names the flag.
    """
    for key, value in written.items(branches=True, nested=False):
        action = find_action(parser, key)
        if not isinstance(action, ActionTypeHint):
            continue
        hint = action._typehint
        name = f"{flag}-{key}" if flag == "-" else f"{flag}.{key}"
        needed = action.default is not None or key in iter_required_keys(parser)
        if value is None and needed and not _takes_none(hint):
            raise ValueError(
                f"{name} null: it has to be {_typehints.type_to_str(hint)}"
                f"{'' if action.default is None else f'; its default is {action.default!r}'}"
            )
        for spec in _specs_here(value):
            arguments = spec.get("init_args")
            if isinstance(arguments, Namespace) and "." in spec["class_path"]:
                with parser_context(parent_parser=parser):
                    inner = ActionTypeHint.get_class_parser(
                        spec["class_path"], getattr(action, "sub_add_kwargs", {})
                    )
                _refuse_nulls(inner, arguments, name)


def _specs_here(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if is_subclass_spec(one)]


def _takes_none(hint: Any) -> bool:
    return hint in (None, Any, type(None), object) or is_optional(hint)
