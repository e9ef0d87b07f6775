"""`train`: what `rlsgd fit` does, of a module and data that Python made."""

from __future__ import annotations

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from rlsgd.algorithms import PolicyModule
from rlsgd.callbacks.base import exact_metrics
from rlsgd.cli.training import TrainingCLI
from rlsgd.core.made_with import as_config
from rlsgd.data import TokenizedDataModule


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Args:
        folder: The run's folder, as `rlsgd fit` leaves it: config, provenance, metrics, logs.
        metrics: Last value of everything that was logged.
        trainer: Lightning's, after training.
    """

    folder: Path
    metrics: dict[str, float]
    trainer: Trainer


def train(
    model: PolicyModule,
    data: TokenizedDataModule,
    *,
    ckpt_path: str | Path | None = None,
    **trainer: Any,
) -> Trained:
    """Train a policy as `rlsgd fit` does, with its checks, folder, provenance and last lines.

    The run can be repeated, and gone on with, by `rlsgd fit --config FOLDER/config.yaml`.

    Args:
        model: An algorithm with its policy and optimizer. An optimizer with arguments is
            `functools.partial(torch.optim.SGD, lr=0.1)`. Its `seed` seeds the whole run.
        data: Its data, with the policy's tokenizer and the model's seed.
        ckpt_path: A checkpoint to go on from, or `last`.
        trainer: Arguments of Lightning's Trainer. Those that `rlsgd fit` sets otherwise (loggers,
            callbacks, the folder) have its defaults; `callbacks` may hold callbacks of rlsgd.

    Raises:
        UsageError: A setting cannot be, as the command would say it.
        ValueError: The same, or the objects do not go together.
        DivergedError: Weights or loss are no longer finite.
    """
    fit = PythonFit.__new__(PythonFit)
    fit.given, fit.callbacks = (model, data), trainer.get("callbacks")
    settings = fit.settings(None if ckpt_path is None else str(ckpt_path), trainer)
    with tempfile.TemporaryDirectory(prefix="rlsgd-python-") as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        fit.start(["fit", "--config", str(config)])
    logged = {name: float(value) for name, value in fit.trainer.callback_metrics.items()}
    metrics = logged | exact_metrics(fit.trainer)
    return Trained(Path(vars(fit.trainer)["run_folder"]), metrics, fit.trainer)


class PythonFit(TrainingCLI):
    """`rlsgd fit` whose module and data are there already; their settings are read off them."""

    given: tuple[PolicyModule, TokenizedDataModule]
    callbacks: Any

    def settings(self, ckpt_path: str | None, trainer: dict[str, Any]) -> dict[str, Any]:
        """All settings of the run, as a config has them.

        Raises:
            ValueError: Model and data differ in seed or tokenizer, or something has no form that a
                config could have.
        """
        model, data = self.given
        if data.seed != model.seed:
            raise ValueError(f"--data.seed {data.seed}: must be the model's, which is {model.seed}")
        if data.tokenizer_path != model.policy_path:
            raise ValueError(
                f"--data.tokenizer {data.tokenizer_path}: must be the model's policy, which is "
                f"{model.policy_path}"
            )
        written = {"model": as_config(model, "--model"), "data": as_config(data, "--data")}
        for linked in ("seed", "tokenizer"):  # the command line gives them itself
            for spec in written.values():
                spec["init_args"].pop(linked, None)
        return {
            "seed_everything": model.seed,
            **written,
            "trainer": {name: as_config(one, f"--trainer.{name}") for name, one in trainer.items()},
            "ckpt_path": ckpt_path,
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        self.command = shlex.join(sys.orig_argv)

    def instantiate_classes(self) -> None:
        """Make the trainer alone, with the callbacks that are there."""
        settings = self.config.fit.clone()
        for mine in ("model", "data"):
            settings.pop(mine)
        self.config_init = self.parser.instantiate_classes(
            Namespace(subcommand="fit", fit=settings)
        )
        if isinstance(self.callbacks, list):
            made = self.config_init["fit"]["trainer"]["callbacks"]
            for number, callback in enumerate(self.callbacks):
                if isinstance(callback, Callback):
                    made[number] = callback
        self.model, self.datamodule = self.given
        self.trainer = self.instantiate_trainer()
