"""LightningCLI for policies: subclass mode for module and data, links, defaults."""

from __future__ import annotations

import shlex
import signal
import warnings
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import rlsgd.optimizers.schedulers  # noqa: F401

# imported to give classes their short names
from rlsgd import algorithms, callbacks, data  # noqa: F401
from rlsgd.algorithms import PolicyModule, RLModule, VerifiableModule
from rlsgd.callbacks import CompletionLog, EvaluationReport
from rlsgd.callbacks.base import run_folder
from rlsgd.cli import headline
from rlsgd.cli.checks import check_data, check_disk_space, check_memory
from rlsgd.cli.defaults import keep_class_paths, parse_written
from rlsgd.cli.errors import FOREIGN, FitParser, check_configs, explain_class, explain_trainer
from rlsgd.cli.folders import (
    Begun,
    SaveConfig,
    claim,
    fill,
    named_folder,
    root_folder,
)
from rlsgd.cli.iterations import (
    IterationCount,
    check_iterations,
    check_trainer_settings,
    require_whole_iteration,
)
from rlsgd.cli.optimizers import check_optimizers
from rlsgd.cli.readback import OptimizerArguments, check_resumed, say
from rlsgd.cli.trainer import trainer_defaults
from rlsgd.core.command import UsageError
from rlsgd.core.composition import composed_arguments
from rlsgd.core.run_folder import RunFolder
from rlsgd.core.types import DivergedError
from rlsgd.data import (
    PromptDataModule,
    TokenizedDataModule,
)
from rlsgd.resume import AtomicCheckpointIO, IterationCheckpoint
from rlsgd.resume.command_line import is_inside, is_local, is_requeued, last_checkpoint
from rlsgd.resume.files import read_checkpoint
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
keep_class_paths()
# a default such as Timer's `interval` is text of a class of its own
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))


class TrainingCLI(LightningCLI):
    """Policies by class name, data by class name, everything below them by class path."""

    claimed: RunFolder | None
    begun: Begun
    subcommand = None
    base: tuple[str, float] | None = None  # name and value of its score
    goes_on = False  # with what is in the folder

    @classmethod
    def run(cls, argv: list[str]) -> TrainingCLI:
        """Parse `argv` and run its subcommand."""
        cli = cls.__new__(cls)
        cli.start(argv)
        return cli

    def start(self, argv: list[str]) -> None:
        """Run; one that fails before it has begun leaves nothing."""
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        self.claimed, self.begun = None, Begun()
        try:
            self.parse_and_run(argv)
        except BaseException as error:
            if self.begun.begun:
                raise
            if self.claimed is not None and not self.goes_on:
                self.claimed.undo()
            if isinstance(error, Exception) and (reason := self.reason(error)):
                raise UsageError(reason) from error
            raise
        finally:
            if self.claimed is not None:
                self.claimed.release()

    def parse_and_run(self, argv: list[str]) -> None:
        """All that LightningCLI does, which is done in its constructor."""
        super().__init__(
            PolicyModule,
            TokenizedDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "rlsgd"},
            parser_class=FitParser,
            args=argv,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.init_args.policy", "data.init_args.tokenizer")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=run_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=run_seed)
        parser.set_defaults(trainer_defaults())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        argv = list(args)
        self.command = shlex.join(["rlsgd", *argv])
        check_configs(argv)
        with composed_arguments(argv) as plain:
            self.config = parse_written(parser, plain, trainer_defaults())

    def _parse_ckpt_path(self) -> None:
        """Lightning would take settings from a checkpoint here, unasked and unchecked."""

    def reason(self, error: Exception) -> str | None:
        """What a setting has to do with an error before anything was computed, if it has."""
        if self.subcommand is None or isinstance(error, (UsageError, DivergedError)):
            return None
        return explain_class(error, self.config[self.subcommand])

    def before_fit(self) -> None:
        """Check the disk, then measure the starting policy, so that every curve has its step 0."""
        trainer: Any = self.trainer
        check_data(self.model, self.datamodule, trained=True)
        check_iterations(trainer, self.model, self.datamodule)
        prompts: Any = self.datamodule
        if isinstance(prompts, PromptDataModule):
            prompts.will_train = True
        if isinstance(self.model, RLModule):
            self.datamodule._check_positive()
            check_sizes(self.model, self.datamodule, trainer)
        for line in check_optimizers(trainer, self.model):
            say(trainer, line)
        check_disk_space(trainer, self.model)
        check_memory(trainer, self.model, self.plain_settings)
        resumed = self.resume()
        if not trainer.fast_dev_run:
            folder = run_folder(trainer)  # on every rank
            if trainer.is_global_zero:
                write_provenance(folder, self.command)
        if not resumed and not trainer.fast_dev_run:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            self.base = headline.score_of(trainer)
            if trainer.received_sigterm:  # which a validation does not heed
                raise Interrupted(signal.SIGTERM, 128 + signal.SIGTERM)

    def plain_settings(self) -> dict[str, Any]:
        """All settings of the subcommand, as config.yaml has them."""
        assert self.subcommand is not None
        settings = self.config[self.subcommand]
        return yaml.safe_load(self._parser(self.subcommand).dump(settings, skip_none=False))

    def resume(self) -> bool:
        """Check the checkpoint, and take the logs back to it; False without one."""
        path = self.config["fit"].get("ckpt_path")
        if path is not None and is_local(path):
            checkpoint = read_checkpoint(Path(path))
            require_whole_iteration(path, checkpoint)
            check_resumed(self.trainer, Path(path), checkpoint, self.plain_settings())
            rewind(self.trainer, Path(path), checkpoint)
        elif self.starts_over:
            start_over(self.trainer)
        return path is not None

    def before_instantiate_classes(self) -> None:
        """Find the last checkpoint, and claim the run's folder while all can still write to it."""
        assert self.subcommand is not None
        settings = self.config[self.subcommand]
        is_fit = self.subcommand == "fit"
        check_trainer_settings(settings.trainer)
        self.starts_over = False
        folder, root = named_folder(settings.trainer), root_folder(settings.trainer)
        path = settings.get("ckpt_path")
        if path == "last" or (path is None and is_fit and is_requeued()):
            last = last_checkpoint(folder, root, given=self.plain_settings(), go_on=is_fit)
            settings.ckpt_path = None if last is None else str(last)
            self.starts_over = last is None
            if last is not None and is_fit:
                folder = last.parents[1]
        path = settings.get("ckpt_path")
        inside = path is not None and folder is not None and is_inside(path, folder)
        self.goes_on = inside or (self.starts_over and folder is not None)
        self.claimed = claim(folder, root, exclusive=is_fit, goes_on=self.goes_on)
        fill(settings.trainer, self.claimed.path if self.claimed else folder or root)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With atomic writes, and IterationCheckpoint where Lightning would add ModelCheckpoint."""
        assert self.subcommand is not None
        settings = self.config_init[self.subcommand]["trainer"]
        given = settings["callbacks"] or []
        present = given if isinstance(given, list) else [given]  # one may stand without a list
        wanted = self.subcommand == "fit" and settings["enable_checkpointing"] is not False
        if wanted and not any(isinstance(callback, Checkpoint) for callback in present):
            present = [*present, IterationCheckpoint()]
        if settings["enable_progress_bar"] is False:  # with one in the list Lightning refuses it
            present = [one for one in present if not isinstance(one, ProgressBar)]
        kwargs["callbacks"] = [*present, self.begun, IterationCount()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except FOREIGN as error:
            raise UsageError(explain_trainer(error, settings)) from error
        vars(trainer)["run_folder"] = Path(settings["default_root_dir"])
        if self.subcommand == "fit":
            trainer.callbacks.append(OptimizerArguments())  # pyright: ignore[reportAttributeAccessIssue]
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
        """`rlsgd fit`: its folder and the base's score before, its headline after."""
        trainer: Any = self.trainer
        folder = run_folder(trainer)  # on every rank
        says = trainer.is_global_zero and not trainer.fast_dev_run
        if says:
            print(headline.begin(trainer, folder), flush=True)
        trainer.fit(**arguments, weights_only=True)
        if says:
            print("\n".join(headline.end(trainer, self.model, folder, self.base)), flush=True)

    def validate(self, **arguments: Any) -> None:
        """`rlsgd validate`: in full, unlike the validations of a fit."""
        check_data(self.model, self.datamodule)
        if isinstance(self.model, VerifiableModule):
            self.model.evaluator.validates_fully = True
        self.evaluate("validate", arguments, verbose=not self.add_report())

    def test(self, **arguments: Any) -> None:
        """`rlsgd test`."""
        check_data(self.model, self.datamodule)
        self.evaluate("test", arguments, verbose=not self.add_report())

    def predict(self, **arguments: Any) -> None:
        """`rlsgd predict`."""
        check_data(self.model, self.datamodule)
        self.add_callback(CompletionLog)
        self.evaluate("predict", arguments)
        folder = run_folder(self.trainer)  # on every rank
        if self.trainer.is_global_zero:
            print(headline.predicted(folder))

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
        self.add_callback(EvaluationReport)
        return True

    def add_callback(self, kind: type[Callback]) -> None:
        """Add a callback of a kind where the config lists none."""
        present: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if not any(isinstance(callback, kind) for callback in present):
            present.append(kind())


def run_seed(seed: bool | int) -> int:
    """`seed_everything` as the seed of what rlsgd draws itself."""
    return int(seed)
