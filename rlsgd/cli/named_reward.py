"""What is wrong with the name of a reward, a class or a function of anybody's module."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

from rlsgd.core.command import did_you_mean
from rlsgd.rewards.base import Reward

FLAG = "--data.reward"


def explain_reward(given: str) -> str | None:
    """One line with the fix, or None where the name is right or too far from any.

    Args:
        given: what was written behind `--data.reward`.
    """
    if re.search(r"[:/\\]|\.py\b", given):
        dotted = re.sub(r"\.py\b", "", given.strip("./")).replace(":", ".").replace("/", ".")
        return f"{FLAG} {given}: give module and function with dots; did you mean {dotted}?"
    module_name, _, name = given.rpartition(".")
    try:
        module = importlib.import_module(module_name or given)
    except SyntaxError as error:
        place = f"{Path(error.filename or module_name).name}, line {error.lineno}"
        return f"{FLAG} {given}: {place}: {error.msg}; mend the module"
    except ModuleNotFoundError as error:
        if error.name is None or not given.startswith(error.name):
            return None  # a module that it imports
        if not module_name:
            return None  # a short name
        known = [file.stem for file in Path.cwd().glob("*.py")]
        advice = did_you_mean(error.name, known) or f"; is {error.name}.py in another folder?"
        return f"{FLAG} {given}: there is no module {error.name}{advice}"
    except Exception as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return f"{FLAG} {given}: importing {module_name or given} raised {reason}; mend the module"
    named = getattr(module, name, None) if module_name else module
    if isinstance(named, ModuleType):
        return f"{FLAG} {given}: is a module; name a function in it{_among(named)}"
    if not hasattr(module, name):
        close = did_you_mean(given, [f"{module_name}.{one}" for one in _rewards(module)])
        return f"{FLAG} {given}: {module_name} has no {name}{close or _among(module)}"
    if inspect.isclass(named) and issubclass(named, Reward) and inspect.isabstract(named):
        methods = ", ".join(sorted(named.__abstractmethods__))
        return f"{FLAG} {given}: the class defines no {methods}; write that method"
    return None


def _rewards(module: ModuleType) -> list[str]:
    """Names of a module's own functions and classes."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
    ]


def _among(module: ModuleType) -> str:
    names = _rewards(module)
    return f": it has {', '.join(names[:8])}" if names else ": it has none"
