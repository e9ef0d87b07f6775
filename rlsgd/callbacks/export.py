"""The trained policy as a folder that transformers, vLLM and `--model.policy` can load."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlsgd.callbacks.base import run_folder
from rlsgd.callbacks.model_card import model_card
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import full_parameters
from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.stored import find_file

GENERATION, CARD = "generation_config.json", "README.md"


@remembers_arguments
class HFExport(Callback):
    """Writes weights, config, generation config, tokenizer and model card when training ends.

    `generation_config.json` is the checkpoint's own file, byte for byte: training samples without
    its top-k or penalties, but whoever uses the model may want them. `README.md` is a
    model card: base, recipe, optimizer, last figures and versions.

    Args:
        folder: target folder; none means `hf/` in the run's folder.
        dtype: dtype of the written weights: `checkpoint` is the dtype that each tensor has in
            the checkpoint that training started from. In bfloat16 an update that is small beside
            its weight rounds away; `float32` keeps every bit of what was trained.
    """

    def __init__(
        self,
        folder: str | None = None,
        dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] = "checkpoint",
    ) -> None:
        self.folder = folder
        self.dtype = dtype

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:
            return
        folder = Path(self.folder).absolute()
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ValueError(
                f"--trainer.callbacks: HFExport.folder {folder}: {there} cannot be written to; "
                "name another folder"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        run = run_folder(trainer)
        folder = Path(self.folder) if self.folder else run / "hf"
        state = {}
        for name, value in full_parameters(module.policy):
            if trainer.is_global_zero:
                state[name] = value.cpu()
        if trainer.is_global_zero:
            persistent = module.policy.state_dict().keys()
            buffers = {n: b.cpu() for n, b in module.policy.named_buffers() if n in persistent}
            dtypes, usual = self.dtypes(module.starting_folder)
            weights = {
                name: tensor.to(dtypes.get(name, usual or tensor.dtype))
                for name, tensor in state.items()
            }
            module.policy.save_pretrained(folder, state_dict={**weights, **buffers})
            module.tokenizer.save_pretrained(folder)
            _name_dtype(folder / "config.json", weights)
            shipped = find_file(module.starting_folder, GENERATION)
            if shipped is not None:
                (folder / GENERATION).write_bytes(shipped.read_bytes())
            (folder / CARD).write_text(model_card(trainer, module, run), encoding="utf-8")

    def dtypes(self, checkpoint: str) -> tuple[dict[str, torch.dtype], torch.dtype | None]:
        """What each tensor is written as, and all others; None leaves them as they are."""
        if self.dtype != "checkpoint":
            return {}, getattr(torch, self.dtype)
        try:
            on_disk = LazyTensors.open(checkpoint)
        except FileNotFoundError:  # random weights, which have no dtype but the trainer's
            return {}, None
        dtypes = {name: on_disk.dtype(name) for name in on_disk.files}
        return dtypes, Counter(dtypes.values()).most_common(1)[0][0]


def _name_dtype(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Let `config.json` say the dtype of the weights: it knows the one they were trained in."""
    [(dtype, _)] = Counter(tensor.dtype for tensor in weights.values()).most_common(1)
    config = json.loads(path.read_text(encoding="utf-8"))
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
