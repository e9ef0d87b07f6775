"""What jsonargparse, Lightning, transformers and torch say of a setting, as flag, fault and fix."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jinja2 import TemplateError
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from rlsgd.cli.named_reward import FLAG as REWARD
from rlsgd.cli.named_reward import explain_reward
from rlsgd.core.command import OneLine, UsageError, did_you_mean, explain, flags_of, one_line

MOST_CHARACTERS = 500  # of somebody else's explanation
# where the classes are that go by their short names
SHORT_NAMES = (
    *("rlsgd.algorithms", "rlsgd.data", "rlsgd.rewards", "rlsgd.callbacks", "rlsgd.optimizers"),
    *("rlsgd.optimizers.schedulers", "rlsgd.rollout", "rlsgd.resume", "torch.optim"),
    *("torch.optim.lr_scheduler", "lightning.pytorch.callbacks", "lightning.pytorch.loggers"),
)
KEY = r'(?:Parser key|Key) "([\w.]+)"'
CLASS = r"(?:given class_path '|class_path=')([\w.]+)'"
# kinds of errors by which classes refuse what they are given; others are bugs
FOREIGN = (
    *(ValueError, TypeError, RuntimeError, OSError, ImportError, MisconfigurationException),
    *(TemplateError, SafetensorError, pickle.UnpicklingError),
)
LOADS_MODEL = ("load_policy", "load_sharded_policy", "load_tokenizer", "load_config")
# what jsonargparse finds, the most telling first
NOT_TAKEN = r"Option '([\w.]+)' is not accepted"
NOT_FOUND = r"module '[\w.]+' has no attribute '\w+'|Expected a dot import path string: (\S+)"
NO_MODULE = r"No module named '([\w.]+)'"
NOT_OF_KIND = r"does not correspond to a subclass of (\w+)"
REQUIRED = r"arguments? (?:are|is) required: ([\w, ]+)|Key \"([\w.]+)\" is required"
GIVEN = r"Given value: (.*)"
EXPECTED = r"Expected (?:a |an |one of )?(?:<class ')?([^\n]+?)'?>?(?:\.? Got value: .*)?$"


class FitParser(OneLine, LightningArgumentParser):
    """LightningCLI's parser. Flags are not cut short: a typo must not become another flag."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if getattr(self, "exit_on_error", True) is False:
            return super().error(message, ex)
        raise UsageError(explain_settings(message, flags_of(self))) from ex


def explain_settings(message: str, flags: Sequence[str] = ()) -> str:
    """One line of what may be a page: the innermost setting that is wrong, and why.

    Args:
        message: jsonargparse's, with an indented part for each class around the setting.
        flags: of the parser, for a suggestion.
    """
    if message.startswith(("unrecognized arguments", "argument ", "the following")):
        return explain(message, list(flags))
    if own := re.search(r"^\s*(?:- )?(?:.*?: )?(--[a-z][\w.]* .*)$", message, re.MULTILINE):
        return own[1]
    if found := re.search(r"does not accept option '([\w.]+)'", message):
        return explain(f"unrecognized arguments: --{found[1]}", list(flags))
    patterns = (NOT_TAKEN, NO_MODULE, NOT_FOUND, NOT_OF_KIND, REQUIRED)
    if re.search(r"Expected a <class '(?:int|float)'>", message):  # no class is wanted
        patterns = (NOT_TAKEN, REQUIRED)
    found = next(filter(None, (re.search(one, message) for one in patterns)), None)
    before = message[: found.start()] if found else message
    keys = re.findall(KEY, before)
    flag = "--" + ".".join(keys) if keys else ""
    given = _given(message)
    if flag == REWARD and found is None and "Dict must include a class_path" in message:
        setting = re.search(r"NestedArg\(key='(\w+)'", message)
        if setting:
            return f"{flag}.{setting[1]}: a function takes no settings; derive a class from Reward"
    if flag == REWARD and given and (reason := explain_reward(given)):
        return reason
    if found is None:
        kinds = dict.fromkeys(re.findall(EXPECTED, message, re.MULTILINE))
        wanted = [_kind(kind) for kind in kinds if not kind.startswith(("path", "NoneType", "dot"))]
        if flag and wanted:
            return f"{flag} {given}: must be {' or '.join(wanted[:3])}"
        return f"{flag}: {_last_words(message)}" if flag else _last_words(message)
    around = re.findall(CLASS, before)
    if "callable class" in before[-60:]:  # of an optimizer or scheduler, whose value comes after
        around += re.findall(CLASS, message[found.start() :])[:1]
    owner = around[-1] if around else ""
    name, pattern = owner.rpartition(".")[2], found.re.pattern
    if pattern == NOT_TAKEN:
        known = [one for one in arguments_of(owner) if one not in ("params", "optimizer")]
        advice = did_you_mean(found[1], known) or f"; it has {', '.join(known)}"
        return f"{flag}.{found[1]}: {name} has no argument {found[1]}{advice}"
    if pattern == NO_MODULE:
        return f"{flag} {given}: there is no module {found[1]}; install it, or mend the class path"
    if pattern == REQUIRED:
        needed = f" ({name} needs it)" if name else ""
        return f"{flag}.{found[1] or found[2]}: is missing{needed}; give it a value"
    named = given or found[1] or ""
    if pattern == NOT_OF_KIND:
        where = ": derive it from rlsgd.rewards.Reward" if found[1] == "Reward" else ""
        return f"{flag} {named}: is no {found[1]}; give the class path of one{where}"
    return f"{flag} {named}: there is no such class{did_you_mean(named, class_names(named))}"


def check_configs(argv: Sequence[str]) -> None:
    """Refuse a config file that is no mapping; the parser does not say which file it is.

    Raises:
        UsageError: names the file.
    """
    words = [word.partition("=") for word in argv]
    given = [value for flag, sign, value in words if flag == "--config" and sign]
    given += [after for word, after in pairwise(argv) if word in ("--config", "-c")]
    for path in (Path(one) for one in given if "\n" not in one and not one.startswith("{")):
        if not path.is_file():
            continue  # a recipe, or nothing
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config {path}: {error.strerror}; name a YAML file") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = one_line(str(error)).replace(' in "<unicode string>",', " in")
            raise UsageError(f"--config {path}: is no valid YAML; mend it: {reason}") from error
        if not isinstance(settings, dict):
            raise UsageError(
                f"--config {path}: must hold settings by name; rlsgd recipes lists some"
            )


def explain_trainer(error: Exception, settings: Any) -> str:
    """What Lightning's Trainer says of one of its arguments."""
    message = one_line(str(error))
    names = [name for name in vars(settings) if re.search(rf"\b{name}\b", message)]
    words = {"gpu": "accelerator", "CUDA": "accelerator", "xla": "accelerator", "Timer": "max_time"}
    names += [flag for word, flag in words.items() if word in message]
    if not names:
        return f"--trainer: {message}"
    name = max(names, key=lambda one: (f"`{one}" in message or f"({one}" in message, len(one)))
    fix = "; --trainer.accelerator cpu needs none" if "gpu backend" in message else ""
    return f"--trainer.{name} {settings.get(name)}: {message}{fix}"


def explain_class(error: Exception, config: Any) -> str | None:
    """What a class of the settings raised while it was made or set up; None if none of them did."""
    text = str(error)
    if not isinstance(error, FOREIGN) or re.search(r"^(?:\s*- )?--[a-z]", text, re.MULTILINE):
        return None  # a bug, or says it all itself
    policy = f"--model.policy {(config.model.get('init_args') or {}).get('policy')}"
    if isinstance(error, TemplateError):
        return (
            f"{policy}: its chat template raised {type(error).__name__}: {one_line(text)}; "
            "--data.chat_template false does without"
        )
    made = {path: flag for flag, path in _classes(config)}
    if isinstance(error, TypeError) and _is_ours(error):
        return None  # a bug
    traceback, found = error.__traceback__, None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name in LOADS_MODEL:
            if isinstance(error, pickle.UnpicklingError):
                return f"{policy}: its weights are pickled, or damaged; save them as safetensors"
            return f"{policy}: cannot be loaded: {_last_words(text)}"
        own = traceback.tb_frame.f_locals.get("self")
        for kind in type(own).__mro__[:-1] if own is not None else ():
            path = f"{kind.__module__}.{kind.__qualname__}"
            found = made.get(path) or made.get(path.rpartition(".")[2]) or found
        traceback = traceback.tb_next
    if found is None and (path := re.search(CLASS, text)):
        found = made.get(path[1]) or made.get(path[1].rpartition(".")[2])
    if found is None:
        return None
    return f"{found}: {_last_words(text)}"


def _is_ours(error: Exception) -> bool:
    """Whether a line of rlsgd raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals["__name__"].startswith("rlsgd.")


def class_names(near: str) -> list[str]:
    """Short names of classes, and what the module of a class path has."""
    modules = [*SHORT_NAMES, *([near.rpartition(".")[0]] if "." in near else [])]
    names: list[str] = []
    for module in modules:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:
            continue
        prefix = f"{module}." if module == near.rpartition(".")[0] else ""
        names += [prefix + name for name, member in members.items() if inspect.isclass(member)]
    return names


def arguments_of(class_path: str) -> list[str]:
    """Names of a class's arguments, also those that it passes on to the class above."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return []
    names: dict[str, None] = {}
    for base in kind.__mro__ if inspect.isclass(kind) else (kind,):
        function = base.__dict__.get("__init__") if inspect.isclass(base) else base
        if function is None or base is object:
            continue
        parameters = inspect.signature(function).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name: None for p in parameters if p.kind in named and p.name != "self"}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _given(message: str) -> str:
    """The value itself: the first that is not a whole class."""
    for text in re.findall(GIVEN, message):
        value = text.partition(". Got value: ")[0]
        nested = re.search(r"NestedArg\(key='[^']*', val='?(.*?)'?\)", value)
        if nested:
            return nested[1]
        if not value.startswith(("Namespace", "{", "[Namespace")):
            return value
    return ""


def _kind(kind: str) -> str:
    """What jsonargparse calls a type, in words."""
    literal = re.match(r"typing.Literal\[(.*)\]", kind)
    return f"one of {literal[1]}" if literal else kind


def _last_words(message: str) -> str:
    """The line that says most: without jsonargparse's list of what else would have been right."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "- Expected a <class")
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(noise)]
    kept = [re.sub(r'^Parser key "[^"]*": ?', "", line) for line in kept]
    wrapped = [line for line in kept if not re.match(r"- Problem with given class_path", line)]
    return one_line(" ".join(wrapped or kept or lines))[:MOST_CHARACTERS]


def _classes(config: Any, flag: str = "-") -> Iterable[tuple[str, str]]:
    """(flag, class path, and short name) of every class in the settings."""
    if isinstance(config, list):
        for item in config:
            yield from _classes(item, flag)
        return
    if not isinstance(config, dict | Namespace):
        return
    for key, value in (config if isinstance(config, dict) else vars(config)).items():
        inner = flag if key == "init_args" else f"{flag}-{key}" if flag == "-" else f"{flag}.{key}"
        if key == "class_path" and isinstance(value, str):
            for path in (value, value.rpartition(".")[2]):
                yield f"{flag} {value}", path
        else:
            yield from _classes(value, inner)
