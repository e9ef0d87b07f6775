"""LightningCLI for policies: subclass mode for module and data, links, defaults."""

from __future__ import annotations

import shutil
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rlsgd import algorithms, callbacks, data  # noqa: F401  (gives classes their short names)
from rlsgd.algorithms import PolicyModule
from rlsgd.data import PromptDataModule

DEFAULTS = {
    "trainer.callbacks": [
        {"class_path": f"rlsgd.callbacks.{name}"}
        for name in (
            "IterationProgress",
            "UpdateSparsity",
            "EffectiveRank",
            "Memory",
            "CompletionLog",
        )
    ],
    "trainer.logger": [
        {
            "class_path": f"lightning.pytorch.loggers.{name}",
            "init_args": {"save_dir": "runs", "name": "fit"},
        }
        for name in ("TensorBoardLogger", "CSVLogger")
    ],
    "trainer.log_every_n_steps": 1,
    # the model and its metrics go from `validate` on to `fit`, where inference tensors are refused
    "trainer.inference_mode": False,
    "trainer.num_sanity_val_steps": 0,  # the base is validated in full before training instead
}


class TrainingCLI(LightningCLI):
    """Policies by class name, data by class name, everything below them by class path."""

    @classmethod
    def run(cls, argv: list[str]) -> TrainingCLI:
        """Parse `argv` and run its subcommand."""
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
        parser.set_defaults(DEFAULTS)

    def before_fit(self) -> None:
        """Check the disk, then measure the starting policy, so that every curve has its step 0."""
        check_disk_space(self.trainer)
        if self.config["fit"].get("ckpt_path") is None and not self.trainer.fast_dev_run:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def run_seed(seed: bool | int) -> int:
    """`seed_everything` as the seed of what rlsgd draws itself."""
    return int(seed)


def check_disk_space(trainer: Any) -> None:
    """Refuse to start where the first checkpoint would not fit.

    Raises:
        ValueError: free space under the checkpoint folder is less than three times the starting
            checkpoint (weights and two optimizer moments).
    """
    if not any(isinstance(c, ModelCheckpoint) for c in trainer.callbacks):
        return
    # the policy's size is only known once loaded; two loops later Lightning would find out itself
    root = trainer.default_root_dir
    free = shutil.disk_usage(root if shutil.os.path.isdir(root) else ".").free  # pyright: ignore
    needed = 100 * 2**20
    if free < needed:
        raise ValueError(
            f"--trainer.default_root_dir {root}: only {free / 2**20:.0f} MiB are free, too little "
            "for a checkpoint; free space, choose another disk, or set "
            "--trainer.enable_checkpointing false"
        )
