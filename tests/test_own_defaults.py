"""Whatever class is chosen, its own signature's defaults run, by every way to choose it."""

from __future__ import annotations

import inspect
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse._util import import_object

from rlsgd import optimizers
from rlsgd.cli import training
from rlsgd.cli.defaults import parse_written
from rlsgd.cli.trainer import trainer_defaults
from rlsgd.cli.training import TrainingCLI
from rlsgd.study.arms import Arm, Study
from rlsgd.study.expansion import expand_runs

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
BASE: dict[str, Any] = {
    "model": {
        "class_path": "PPO",
        "init_args": {"policy": "embedded", "optimizer": SGD, "value_optimizer": SGD},
    },
    "data": {
        "class_path": "PromptDataModule",
        "init_args": {"task": {"class_path": "ReasoningGym", "init_args": {"name": "chain_sum"}}},
    },
}
OWN = [getattr(optimizers, name) for name in optimizers.__all__ if name != "OptimizerContainer"]
TORCH = [
    found
    for name in torch.optim.__all__
    if inspect.isclass(found := getattr(torch.optim, name))
    and issubclass(found, torch.optim.Optimizer)
    and found is not torch.optim.Optimizer
]
OTHERS = ["schedulefree.SGDScheduleFree", "schedulefree.AdamWScheduleFree", "lion_pytorch.Lion"]
CLASSES = sorted({f"{found.__module__}.{found.__name__}" for found in (*TORCH, *OWN)} | {*OTHERS})


@cache
def parser(observed: bool) -> Any:
    """The parser of the command, made once; parsing is quick where nothing observes by default."""

    class Parsed(TrainingCLI):
        def before_instantiate_classes(self) -> None:
            raise StopIteration(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv[:1])
        if not observed:
            patch.setattr(training, "trainer_defaults", dict)
        with pytest.raises(StopIteration) as stopped:
            Parsed.run(["fit", *MINIMAL])
    return stopped.value.value.parser


MINIMAL = ("--model", "GRPO", "--data", "PromptDataModule", "--data.task", "ReasoningGym")
MINIMAL += ("--data.task.name", "chain_sum")


def parse(*argv: str, observed: bool = False) -> Any:
    defaults = trainer_defaults() if observed else {}
    return parse_written(parser(observed), ["fit", *argv], defaults).fit


def written(path: Path, settings: Any) -> str:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def over(path: str, value: Any) -> dict[str, Any]:
    """A mapping with one value at a dotted key."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def by_each_way(
    folder: Path, flags: tuple[str, ...], class_path: str, init_args: dict[str, Any]
) -> list[Any]:
    """The arguments that a class gets at each flag: a config, an overlay, flags in two forms."""
    spec = {"class_path": class_path, "init_args": init_args}
    places = [flag.replace(".", ".init_args.") for flag in flags]
    base = written(folder / "base.yaml", BASE)
    mine, overlay, short, long = deepcopy(BASE), dict[str, Any](), list[str](), list[str]()
    for flag, place in zip(flags, places, strict=True):
        head, _, name = place.split(".")
        mine[head]["init_args"][name] = spec
        overlay.setdefault(head, {"init_args": {}})["init_args"][name] = spec
        short += [f"--{flag}", class_path]
        short += [word for k, v in init_args.items() for word in (f"--{flag}.{k}", str(v))]
        long.append(f"--{place}.class_path={class_path}")
        long += [f"--{place}.init_args.{k}={v}" for k, v in init_args.items()]
    ways = (
        ("--config", written(folder / "whole.yaml", mine)),
        ("--config", base, "--config", written(folder / "overlay.yaml", overlay)),
        ("--config", base, *short),
        ("--config", base, *long),
    )
    parsed = [parse(*argv) for argv in ways]
    return [one[place].get("init_args", {}) for one in parsed for place in places]


def groups(class_path: str, arguments: dict[str, Any]) -> Any:
    shapes = [(2, 2)] if class_path.startswith("torch.") else [(2, 2), (2, 2), (2,)]
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    setattr(weights[-1], "rlsgd_roles", frozenset({"head"}))  # noqa: B010
    made = import_object(class_path)(weights, **arguments)
    return [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups]


@pytest.mark.parametrize("class_path", CLASSES)
def test_an_optimizer_runs_with_its_own_defaults(class_path: str, tmp_path: Path):
    if class_path in OTHERS:
        pytest.importorskip(class_path.partition(".")[0])
    right = groups(class_path, {"lr": 0.25})
    flags = ("model.optimizer", "model.value_optimizer")
    for arguments in by_each_way(tmp_path, flags, class_path, {"lr": 0.25}):
        assert groups(class_path, vars(arguments)) == right
    # a study's arm is an overlay too: through what it really writes
    base = written(tmp_path / "study-base.yaml", BASE)
    arm = Arm(name="arm", optimizer=class_path, learning_rate=0.25)
    (run,) = expand_runs(Study(name="s", config=base, arms=[arm], out=str(tmp_path / "out")))
    parsed = parse("--config", base, "--config", written(tmp_path / "arm.yaml", run.overlay))
    assert groups(class_path, vars(parsed.model.init_args.optimizer.init_args)) == right


OTHER_KINDS = [
    ("model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", {"step_size": 3}),
    ("model.lr_scheduler", "torch.optim.lr_scheduler.CosineAnnealingLR", {"T_max": 3}),
    ("model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.1}),
    ("model.lr_scheduler", "rlsgd.optimizers.schedulers.WarmupCosine", {"total_steps": 9}),
    ("model.sampler", "rlsgd.rollout.sampler.HFSampler", {}),
    ("data.task", "rlsgd.data.DatasetTask", {"path": "problems.jsonl"}),
    ("data.task", "rlsgd.data.AdaptiveReasoningGym", {"environments": {"chain_sum": {}}}),
    ("data.reward", "rlsgd.rewards.MathVerify", {}),
    ("data.reward", "rlsgd.rewards.StdioTests", {}),
]


@pytest.mark.parametrize(("flag", "class_path", "needed"), OTHER_KINDS)
def test_a_class_of_another_kind_does_too(
    flag: str, class_path: str, needed: dict[str, Any], tmp_path: Path
):
    signature = inspect.signature(import_object(class_path)).parameters.values()
    own = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
    for arguments in by_each_way(tmp_path, (flag,), class_path, needed):
        ran = arguments if isinstance(arguments, dict) else vars(arguments)
        for name, value in ran.items():
            wanted = needed.get(name, own.get(name))
            assert value == wanted or list(value) == list(wanted), name


def test_what_is_kept_for_another_class_is_said(tmp_path: Path, capsys: Any):
    base = written(tmp_path / "base.yaml", BASE)
    sgd = written(
        tmp_path / "sgd.yaml",
        over("model.init_args.optimizer.init_args", {"momentum": 0.9, "nesterov": True}),
    )
    parsed = parse("--config", base, "--config", sgd, "--model.optimizer", "SGDLL")
    assert vars(parsed.model.init_args.optimizer.init_args) == vars(
        parse(
            "--config", base, "--model.optimizer", "SGDLL", "--model.optimizer.momentum", "0.9"
        ).model.init_args.optimizer.init_args
    )
    said = capsys.readouterr().err.splitlines()
    line = "rlsgd: SGDLL keeps lr 0.5, momentum 0.9 and SGDLL does not take nesterov true"
    assert said[0] == f"{line}, written for SGD"


def test_a_task_keeps_nothing_of_another_task(tmp_path: Path, capsys: Any):
    base = written(tmp_path / "base.yaml", BASE)
    task = parse("--config", base, "--data.task=DatasetTask", "--data.task.path=x.jsonl")
    assert task.data.init_args.task.init_args.name is None
    assert "DatasetTask does not take name chain_sum, written for ReasoningGym" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flag", "value"), [("model.policy", "null"), ("data.task.name", "null")], ids=str
)
def test_null_never_becomes_text(flag: str, value: str, tmp_path: Path):
    base = written(tmp_path / "base.yaml", BASE)
    place = flag.replace(".", ".init_args.")
    overlay = written(tmp_path / "null.yaml", over(place, None))
    for argv in ((f"--{flag}", value), (f"--{place}=null",), ("--config", overlay)):
        with pytest.raises(ValueError, match=rf"--{place.split('.')[0]}\S* null: it has to be"):
            parse("--config", base, *argv)


def test_a_list_replaces_and_a_plus_appends(tmp_path: Path):
    base = written(tmp_path / "base.yaml", BASE)
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere"}}
    other = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "elsewhere"}}
    replaced = parse(
        "--config",
        base,
        "--config",
        written(tmp_path / "l.yaml", over("trainer.logger", [logger, other])),
    ).trainer.logger
    assert [one.init_args.name for one in replaced] == ["lightning_logs"] * 2
    added = parse(
        "--config", base, "--trainer.callbacks+=LearningRateMonitor", observed=True
    ).trainer.callbacks
    observers = len(trainer_defaults()["trainer.callbacks"])
    assert len(added) == observers + 1
