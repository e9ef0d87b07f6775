"""Objects that Python made, written as a config has them: class path and arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def remembers_arguments(cls: type[T]) -> type[T]:
    """Let a class's objects, and those of its subclasses, know as `made_with` how they were made.

    So a run from Python can be written down. It is done by `__new__`, before any `__init__`, and by
    a decorator, so that the class has no further base.
    """

    def new(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        made = super(cls, kind).__new__(kind)  # pyright: ignore[reportArgumentType]
        signature = inspect.signature(kind.__init__)
        try:
            given = dict(signature.bind_partial(made, *args, **kwargs).arguments)
        except TypeError:  # which the constructor says better
            return made
        given.pop(next(iter(signature.parameters)))
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        vars(made)["made_with"] = given
        return made

    # as a decorator of object's own, so that jsonargparse asks `__init__` for the parameters
    vars(new)["__wrapped__"] = object.__new__
    setattr(cls, "__new__", new)  # noqa: B010  (types forbid the plain assignment)
    setattr(cls, "__signature__", _SignatureOfInit())  # noqa: B010
    return cls


class _SignatureOfInit:
    """What `inspect.signature` and an editor show of a class: the arguments of `__init__`."""

    def __get__(self, made: Any, kind: type[Any]) -> inspect.Signature:
        signature = inspect.signature(kind.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def as_config(value: Any, flag: str) -> Any:
    """A value as a config has it.

    Args:
        value: Plain data, a class, a function, `functools.partial` of either with named arguments,
            a dataclass, an object that remembers its arguments, or lists and mappings of these.
        flag: Of the setting, for the error.

    Raises:
        ValueError: The value has no such form.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [as_config(one, flag) for one in value]
    if isinstance(value, dict):
        return {key: as_config(one, f"{flag}.{key}") for key, one in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        return _spec(value.func, value.keywords, flag)
    if isinstance(value, type):
        return _spec(value, {}, flag)
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        return _path(value, flag)
    if (arguments := getattr(value, "made_with", None)) is not None:
        return _spec(type(value), arguments, flag)
    if dataclasses.is_dataclass(value):
        given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _spec(type(value), given, flag)
    raise ValueError(
        f"{flag} {value!r:.80}: cannot be written to the run's config.yaml; give "
        "{'class_path': ..., 'init_args': {...}}"
    )


def _spec(kind: Any, arguments: dict[str, Any], flag: str) -> dict[str, Any]:
    written = {name: as_config(value, f"{flag}.{name}") for name, value in arguments.items()}
    return {"class_path": _path(kind, flag), "init_args": written}


def _path(named: Any, flag: str) -> str:
    """Import path of a class or function, where its package exports it."""
    name = named.__qualname__
    if "<" in name:
        raise ValueError(
            f"{flag} {name}: has no name by which config.yaml could find it again; write "
            "functools.partial(torch.optim.SGD, lr=0.1), or define it at the top of a module"
        )
    parts = named.__module__.split(".")
    modules = [".".join(parts[:length]) for length in range(2, len(parts))]
    exported = (one for one in modules if getattr(sys.modules.get(one), name, None) is named)
    return f"{next(exported, named.__module__)}.{name}"
