import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler
from transformers import PreTrainedModel

from rlsgd.callbacks import CallbackTime, UpdateSparsity
from rlsgd.callbacks.callback_time import CallbackProfiler, class_of
from rlsgd.callbacks.export import HFExport
from tests.callbacks.callback_stub import PolicyStub, Scripted, loader, logged, make_trainer, values


class Clock:
    """A clock that only callbacks advance, by whole seconds."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Costly(Callback):
    """Spends seconds in each of its hooks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, *_) -> None:
        self.clock.now += 1000

    def on_train_epoch_start(self, *_) -> None:
        self.clock.now += 1

    def on_train_batch_end(self, trainer, *_) -> None:
        self.clock.now += 10 * (trainer.current_epoch + 1)

    def on_train_epoch_end(self, *_) -> None:
        self.clock.now += 100


class Cheap(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_) -> None:
        self.clock.now += 3


def nothing(_policy: PreTrainedModel) -> None: ...


def train(folder: Path, tmp_path: Path, callbacks: list[Callback], **settings) -> None:
    trainer = make_trainer(tmp_path, callbacks, epochs=3, **settings)
    trainer.fit(PolicyStub(folder, lambda policy: Scripted(policy, [nothing] * 6)), loader(2))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rlsgd.callbacks.callback_time.time", clock)
    return clock


@pytest.mark.parametrize("first", [True, False])
def test_seconds_of_every_epoch_by_hand(
    first: bool, clock: Clock, tiny_llama: Path, tmp_path: Path
):
    others = [Costly(clock), Cheap(clock), Cheap(clock)]
    callbacks = [CallbackTime(), *others] if first else [*others, CallbackTime()]
    train(tiny_llama, tmp_path, callbacks)
    # 2 batches: 20, 40, 60. The second at an epoch's start is of the next epoch's time for who
    # runs before CallbackTime, and then nobody's in the first epoch, nor in the last one's end
    start = [1, 1, 1] if first else [1, 1, 0]
    costly = [100 + 20 + start[0], 100 + 40 + start[1], 100 + 60 + start[2]]
    assert logged(tmp_path, "time/callback/Costly") == [
        (epoch, 2 * (epoch + 1), costly[epoch]) for epoch in range(3)
    ]
    assert values(tmp_path, "time/callback/Cheap") == [12, 12, 12], "two of 2 * 3"
    assert values(tmp_path, "time/callback/CallbackTime") == [0, 0, 0]
    assert values(tmp_path, "time/epoch") == [total + 12 for total in costly]


def test_a_second_fit_begins_anew(clock: Clock, tiny_llama: Path, tmp_path: Path):
    """What lies between two fits, and before their first epochs, is in no epoch."""
    timer, costly = CallbackTime(), Costly(clock)
    for run in ("first", "second"):
        train(tiny_llama, tmp_path / run, [timer, costly])
        assert values(tmp_path / run, "time/callback/Costly") == [121, 141, 161]
        clock.now += 5000


def test_a_profiler_of_ones_own_stays(clock: Clock, tiny_llama: Path, tmp_path: Path):
    own = SimpleProfiler(dirpath=tmp_path, filename="profile")
    train(tiny_llama, tmp_path, [CallbackTime(), Costly(clock)], profiler=own)
    assert any("Costly" in action for action in own.recorded_durations)
    assert "time/epoch" not in (tmp_path / "metrics.csv").read_text()


def test_real_seconds_are_of_the_callbacks_that_run(tiny_llama: Path, tmp_path: Path):
    began = time.perf_counter()
    train(tiny_llama, tmp_path, [UpdateSparsity(every_n_epochs=3), CallbackTime()])
    took = time.perf_counter() - began
    spent = values(tmp_path, "time/callback/UpdateSparsity")
    epochs = values(tmp_path, "time/epoch")
    assert len(spent) == len(epochs) == 3 and sum(epochs) < took
    assert all(0 < callback < epoch for callback, epoch in zip(spent, epochs, strict=True))


def test_hooks_are_counted_once_each():
    """By their names: every hook of a class, and nothing that is no callback."""
    profiler = CallbackProfiler()
    ticks = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlsgd.callbacks.callback_time.time.perf_counter", lambda: next(ticks))
        for action in ("[Callback]A.on_fit_start", "[Callback]A.on_fit_end", "[Strategy]A.x"):
            with profiler.profile(action):
                pass
        with profiler.profile("[Callback]B.setup"), profiler.profile("[Callback]A.on_save"):
            pass
    assert profiler.take() == {"A": 3, "B": 3}, "each start and stop is one tick"
    assert profiler.take() == {}


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (UpdateSparsity(model="value"), "UpdateSparsity"),
        (HFExport(), "HFExport"),
        (type("Inner", (Callback,), {"__qualname__": "outer.<locals>.Inner"})(), "Inner"),
    ],
)
def test_class_of_a_state_key(callback: Callback, name: str):
    assert class_of(f"[Callback]{callback.state_key}.on_train_batch_end") == name
