"""LightningCLI for policies: subclass mode for module and data, links, defaults."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rlsgd import algorithms, callbacks, data  # noqa: F401  (gives classes their short names)
from rlsgd.algorithms import PolicyModule, RLModule
from rlsgd.callbacks import EvaluationReport
from rlsgd.checkpoints import LazyTensors
from rlsgd.data import PromptDataModule
from rlsgd.rollout.loader import check_sizes

# true of every run here, and nothing that a user could act on
EXPECTED_WARNINGS = (
    ".*args parameter is intended to run from within Python.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers which may be a bottleneck.*",
)
OBSERVERS = ("IterationProgress", "UpdateSparsity", "EffectiveRank", "Memory", "CompletionLog")


def trainer_defaults() -> dict[str, Any]:
    """Trainer settings that differ from Lightning's. Loggers share one folder for each run."""
    folder = {"save_dir": "runs", "name": "fit", "version": time.strftime("%Y%m%d-%H%M%S")}
    return {
        "trainer.callbacks": [{"class_path": f"rlsgd.callbacks.{name}"} for name in OBSERVERS],
        "trainer.logger": [
            {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": folder}
            for name in ("TensorBoardLogger", "CSVLogger")
        ],
        "trainer.log_every_n_steps": 1,
        # model and metrics go from `validate` on to `fit`, where inference tensors are refused
        "trainer.inference_mode": False,
        "trainer.num_sanity_val_steps": 0,  # the base is validated in full before training instead
    }


class TrainingCLI(LightningCLI):
    """Policies by class name, data by class name, everything below them by class path."""

    @classmethod
    def run(cls, argv: list[str]) -> TrainingCLI:
        """Parse `argv` and run its subcommand."""
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return cls(
            PolicyModule,
            PromptDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "rlsgd"},
            args=argv,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.init_args.policy", "data.init_args.tokenizer")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=run_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=run_seed)
        parser.set_defaults(trainer_defaults())

    def before_fit(self) -> None:
        """Check the disk, then measure the starting policy, so that every curve has its step 0."""
        trainer: Any = self.trainer
        if isinstance(self.model, RLModule):
            check_sizes(self.model, self.datamodule, trainer)
        check_disk_space(trainer, self.model)
        if self.config["fit"].get("ckpt_path") is None and not trainer.fast_dev_run:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = LightningCLI.subcommands()
        for command in ("validate", "test"):
            skipped[command] = {*skipped[command], "verbose"}  # the report has a table of its own
        return skipped

    def validate(self, **arguments: Any) -> None:
        """`rlsgd validate`: in full, unlike the validations of a fit."""
        self.model.validates_fully = True
        self.add_report()
        self.trainer.validate(**arguments, verbose=False)

    def test(self, **arguments: Any) -> None:
        """`rlsgd test`."""
        self.add_report()
        self.trainer.test(**arguments, verbose=False)

    def add_report(self) -> None:
        """An evaluation is reported whatever callbacks the config lists."""
        present: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if not any(isinstance(callback, EvaluationReport) for callback in present):
            present.append(EvaluationReport())


def run_seed(seed: bool | int) -> int:
    """`seed_everything` as the seed of what rlsgd draws itself."""
    return int(seed)


def check_disk_space(trainer: Any, model: PolicyModule) -> None:
    """Refuse to start where the first checkpoint would not fit.

    Raises:
        ValueError: free space is less than the weights and two optimizer moments take in float32.
    """
    if not any(isinstance(callback, ModelCheckpoint) for callback in trainer.callbacks):
        return
    try:
        weights = LazyTensors.open(model.starting_folder)
    except FileNotFoundError:
        return  # no weights to measure yet: they will be random
    needed = 3 * 4 * sum(math.prod(weights.shape(name)) for name in weights.files)
    root = Path(trainer.default_root_dir).absolute()
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"--trainer.default_root_dir {root}: {free / 2**20:,.0f} MiB are free and a checkpoint "
            f"may need {needed / 2**20:,.0f}; free space, choose another disk, or set "
            "--trainer.enable_checkpointing false"
        )
