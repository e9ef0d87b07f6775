"""LightningCLI for policies: subclass mode for module and data, links, defaults."""

from __future__ import annotations

import math
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from safetensors import SafetensorError

import rlsgd.optimizers.schedulers  # noqa: F401

# imported to give classes their short names
from rlsgd import algorithms, callbacks, data  # noqa: F401
from rlsgd.algorithms import SFT, NextToken, PolicyModule, RLModule, VerifiableModule
from rlsgd.callbacks import EvaluationReport
from rlsgd.callbacks.base import run_folder
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.composition import composed_arguments
from rlsgd.data import (
    PromptDataModule,
    SolutionDataModule,
    TextDataModule,
    TokenizedDataModule,
)
from rlsgd.resume import AtomicCheckpointIO, IterationCheckpoint
from rlsgd.resume.callback import check_new_folder
from rlsgd.resume.command_line import is_requeued, last_checkpoint
from rlsgd.resume.files import publish, read_checkpoint, unfinished
from rlsgd.resume.history import rewind, start_over
from rlsgd.resume.signals import Interrupted
from rlsgd.rollout.loader import check_sizes
from rlsgd.study.provenance import write_provenance

# true of every run here, and nothing that a user could act on
EXPECTED_WARNINGS = (
    ".*args parameter is intended to run from within Python.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*does not have many workers which may be a bottleneck.*",
)
# what each kind of training is done on; a class of one's own counts as the one it derives from
TRAINED_ON = {RLModule: PromptDataModule, SFT: SolutionDataModule, NextToken: TextDataModule}
OBSERVERS = (
    "IterationProgress",
    "UpdateSparsity",
    "EffectiveRank",
    "Memory",
    "CompletionLog",
    "CallbackTime",
)


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


class SaveConfig(SaveConfigCallback):
    """`config.yaml` in the run's folder, by which a run is found again: whole, or as it was."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        folder, name = run_folder(trainer), self.config_filename
        self.config_filename = unfinished(folder / name).name
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            publish(folder / self.config_filename, folder / name)


class TrainingCLI(LightningCLI):
    """Policies by class name, data by class name, everything below them by class path."""

    @classmethod
    def run(cls, argv: list[str]) -> TrainingCLI:
        """Parse `argv` and run its subcommand."""
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return cls(
            PolicyModule,
            TokenizedDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "rlsgd"},
            args=argv,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.init_args.policy", "data.init_args.tokenizer")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=run_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=run_seed)
        parser.set_defaults(trainer_defaults())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.argv = list(args)
        with composed_arguments(self.argv) as plain:
            super().parse_arguments(parser, plain)

    def before_fit(self) -> None:
        """Check the disk, then measure the starting policy, so that every curve has its step 0."""
        trainer: Any = self.trainer
        check_data(self.model, self.datamodule, trained=True)
        if isinstance(self.model, RLModule):
            check_sizes(self.model, self.datamodule, trainer)
        check_optimizer(trainer, self.model)
        check_disk_space(trainer, self.model)
        resumed = self.resume()
        if not trainer.fast_dev_run:
            folder = run_folder(trainer)  # on every rank
            if trainer.is_global_zero:
                write_provenance(folder, self.argv)
        if not resumed and not trainer.fast_dev_run:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            if trainer.received_sigterm:  # which a validation does not heed
                raise Interrupted(signal.SIGTERM, 128 + signal.SIGTERM)

    def resume(self) -> bool:
        """Check the checkpoint, and take the logs back to it; False without one."""
        path = self.config["fit"].get("ckpt_path")
        if path is not None and is_local(path):
            rewind(self.trainer, Path(path), read_checkpoint(Path(path)))
        elif self.starts_over:
            start_over(self.trainer)
        elif path is None:
            check_new_folder(self.trainer)
        return path is not None

    def before_instantiate_classes(self) -> None:
        """Find the last checkpoint while the loggers' folder can still become its run's."""
        assert self.subcommand is not None
        settings = self.config[self.subcommand]
        is_fit = self.subcommand == "fit"
        self.starts_over = False
        path = settings.get("ckpt_path")
        if path == "last" or (path is None and is_fit and is_requeued()):
            plain = self._parser(self.subcommand).dump(settings, skip_none=False)
            last = last_checkpoint(settings, given=yaml.safe_load(plain), go_on=is_fit)
            settings.ckpt_path = None if last is None else str(last)
            self.starts_over = last is None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With atomic writes, and IterationCheckpoint where Lightning would add ModelCheckpoint."""
        assert self.subcommand is not None
        settings = self.config_init[self.subcommand]["trainer"]
        present = settings["callbacks"] or []
        wanted = self.subcommand == "fit" and settings["enable_checkpointing"] is not False
        if wanted and not any(isinstance(callback, Checkpoint) for callback in present):
            kwargs["callbacks"] = [*present, IterationCheckpoint()]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = LightningCLI.subcommands()
        for command in skipped:  # what a checkpoint may hold is not a matter of choice
            skipped[command] = {*skipped[command], "weights_only"}
        for command in ("validate", "test"):
            skipped[command] = {*skipped[command], "verbose"}  # the report has a table of its own
        return skipped

    def fit(self, **arguments: Any) -> None:
        """`rlsgd fit`."""
        self.trainer.fit(**arguments, weights_only=True)

    def validate(self, **arguments: Any) -> None:
        """`rlsgd validate`: in full, unlike the validations of a fit."""
        check_data(self.model, self.datamodule)
        self.model.validates_fully = True
        self.evaluate("validate", arguments, verbose=not self.add_report())

    def test(self, **arguments: Any) -> None:
        """`rlsgd test`."""
        check_data(self.model, self.datamodule)
        self.evaluate("test", arguments, verbose=not self.add_report())

    def predict(self, **arguments: Any) -> None:
        """`rlsgd predict`."""
        check_data(self.model, self.datamodule)
        self.evaluate("predict", arguments)

    def evaluate(self, command: str, arguments: dict[str, Any], **options: Any) -> None:
        """One of the trainer's evaluations, of a checkpoint that can be read if one is given."""
        path = arguments.get("ckpt_path")
        if path is not None and is_local(path):
            read_checkpoint(Path(path))
        getattr(self.trainer, command)(**arguments, **options, weights_only=True)

    def add_report(self) -> bool:
        """Report accuracies whatever callbacks the config lists; False where there are none."""
        if not isinstance(self.model, VerifiableModule):
            return False
        present: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if not any(isinstance(callback, EvaluationReport) for callback in present):
            present.append(EvaluationReport())
        return True


def is_local(checkpoint: str) -> bool:
    """Whether `--ckpt_path` is a file or folder, not an address or one of Lightning's words."""
    return "://" not in checkpoint and checkpoint not in ("best", "hpc")


def check_data(
    model: PolicyModule, datamodule: TokenizedDataModule, *, trained: bool = False
) -> None:
    """Refuse data that the model cannot be trained on, or evaluated on.

    Raises:
        ValueError: names both, and the data that it takes.
    """
    wanted = next((takes for kind, takes in TRAINED_ON.items() if isinstance(model, kind)), None)
    kinds = (TextDataModule, SolutionDataModule, PromptDataModule)  # the last is the second's base
    given = next((kind for kind in kinds if isinstance(datamodule, kind)), None)
    if wanted is None or given is None:
        return  # somebody's own, derived from the base class alone
    # prompts and solutions are evaluated on the same problems
    fits = given is wanted if trained else (given is TextDataModule) == (wanted is TextDataModule)
    if not fits:
        raise ValueError(
            f"--data {type(datamodule).__name__} does not go with --model {type(model).__name__}, "
            f"which takes --data {wanted.__name__}"
        )


def run_seed(seed: bool | int) -> int:
    """`seed_everything` as the seed of what rlsgd draws itself."""
    return int(seed)


def check_optimizer(trainer: Any, model: PolicyModule) -> None:
    """Let an optimizer class with `check_trainer` refuse flags before the base is validated."""
    for part in getattr(model.optimizer, "args", ()):  # LightningCLI's is a partial of the class
        if check := getattr(part, "check_trainer", None):
            check(trainer)


def check_disk_space(trainer: Any, model: PolicyModule) -> None:
    """Refuse to start where the first checkpoint would not fit.

    Raises:
        ValueError: free space is less than the weights and two optimizer moments take in float32.
    """
    if not any(isinstance(callback, Checkpoint) for callback in trainer.callbacks):
        return
    try:
        weights = LazyTensors.open(model.starting_folder)
    except (FileNotFoundError, SafetensorError):
        return  # no weights to measure: they will be random, or are damaged, which loading will say
    needed = 3 * 4 * sum(math.prod(weights.shape(name)) for name in weights.files)
    root = run_folder(trainer).absolute()
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"--trainer.default_root_dir {root}: {free / 2**20:,.0f} MiB are free and a checkpoint "
            f"may need {needed / 2**20:,.0f}; free space, choose another disk, or set "
            "--trainer.enable_checkpointing false"
        )
