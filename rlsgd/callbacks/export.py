"""The trained policy as a folder that transformers, vLLM and `--model.policy` can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlsgd.callbacks.base import run_folder
from rlsgd.core.distributed import full_parameters


class HFExport(Callback):
    """Writes weights (safetensors), config and tokenizer when training ends.

    Args:
        folder: where to; none means `hf/` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        folder = Path(self.folder) if self.folder else run_folder(trainer) / "hf"
        state = {}
        for name, value in full_parameters(module.policy):
            if trainer.is_global_zero:
                state[name] = value.cpu()
        if trainer.is_global_zero:
            persistent = module.policy.state_dict().keys()
            buffers = {n: b.cpu() for n, b in module.policy.named_buffers() if n in persistent}
            module.policy.save_pretrained(folder, state_dict={**state, **buffers})
            module.tokenizer.save_pretrained(folder)
