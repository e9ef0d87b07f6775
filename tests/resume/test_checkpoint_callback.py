"""When IterationCheckpoint saves, what it keeps, and what it refuses to save."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rlsgd.algorithms import GRPO
from rlsgd.core.types import DivergedError
from rlsgd.resume import IterationCheckpoint
from tests.algorithms.setups import make_data, make_module, make_trainer


class Noted(IterationCheckpoint):
    """Notes what there is after each save."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def save(self, trainer, pl_module):
        super().save(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / "checkpoints"
        self.seen.append(sorted(path.name for path in folder.iterdir()))


class Own(Callback):
    """Its state is `state`; `on_epoch` is called with the policy after each epoch."""

    def __init__(self, state=None, on_epoch=lambda policy: None):
        self.state, self.on_epoch = state, on_epoch

    def state_dict(self):
        return {} if self.state is None else {"own": self.state}

    def on_train_epoch_end(self, trainer, pl_module):
        self.on_epoch(pl_module.policy)


def train(folder, model, *callbacks, epochs):
    options = {"enable_checkpointing": True, "max_epochs": epochs}
    trainer = make_trainer(folder, callbacks=[*callbacks], **options)
    trainer.fit(make_module(GRPO, model), datamodule=make_data(model, prompts_per_epoch=2))


def test_cadence_and_number_kept(tiny_llama, tmp_path):
    callback = Noted(every_n_epochs=2, keep=2)
    train(tmp_path, tiny_llama, callback, epochs=7)
    names = [f"iteration={n}.ckpt" for n in (2, 4, 6, 7)]
    assert callback.seen == [names[:1], names[:2], names[1:3], names[2:]]


def test_a_state_that_could_not_be_read_back_is_refused_at_once(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"^--ckpt_path .*holds more than tensors and plain data"):
        train(tmp_path, tiny_llama, IterationCheckpoint(), Own(state=Fraction(1, 2)), epochs=2)


def test_weights_that_are_not_finite_are_not_saved(tiny_llama, tmp_path):
    def spoil(policy):
        with torch.no_grad():
            next(policy.parameters()).fill_(float("nan"))

    with pytest.raises(DivergedError, match="no longer finite"):
        train(tmp_path, tiny_llama, IterationCheckpoint(), Own(on_epoch=spoil), epochs=2)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"keep": 0}])
def test_numbers_below_1_are_refused(options):
    with pytest.raises(ValueError, match=r"^--trainer.callbacks: IterationCheckpoint"):
        IterationCheckpoint(**options)
