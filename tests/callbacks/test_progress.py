import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel

from rlsgd.callbacks import IterationProgress
from tests.callbacks.callback_stub import PolicyStub, loader, make_trainer


def train(folder: Path, tmp_path: Path, epochs: int, callback: IterationProgress, **kw) -> None:
    def standstill(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return torch.optim.SGD(policy.parameters(), lr=0.0)

    trainer = make_trainer(tmp_path, [callback], epochs=epochs, **kw)
    trainer.fit(PolicyStub(folder, standstill), loader(1))


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(25, [*range(2, 25, 2), 25]), (3, [1, 2, 3])],
    ids=["every tenth and the last", "short"],
)
def test_lines_where_there_is_no_terminal(
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epochs: int,
    expected: list[int],
):
    train(tiny_llama, tmp_path, epochs, IterationProgress())
    lines = printed(capsys)
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/{epochs}" for n in expected]
    for line in lines:
        _, loss, accuracy = line.split("  ")
        assert accuracy == "val accuracy 0.25"
        name, number = loss.split(" ")
        assert name == "loss" and float(number) > 0


def test_a_long_line_stays_one_line(capsys: pytest.CaptureFixture[str]):
    callback = IterationProgress()
    metrics = {
        "reward": torch.tensor(0.123456),
        "loss": torch.tensor(-1.23456e-5),
        "val/accuracy": torch.tensor(0.5),
        "completions/mean_length": torch.tensor(1234.56),
        "grad_norm": torch.tensor(98.7654),
        "kl": torch.tensor(3.0),
    }
    trainer = type("T", (), {"callback_metrics": metrics, "current_epoch": 99})
    trainer.max_epochs, trainer.is_global_zero = 1000, True
    callback.on_train_epoch_end(trainer, None)  # pyright: ignore[reportArgumentType]
    assert printed(capsys) == [
        "epoch 100/1000  reward 0.1235  loss -1.235e-05  val accuracy 0.5  length 1235"
        "  grad norm 98.77"
    ]


def test_without_a_planned_end_every_epoch_is_a_line(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(tiny_llama, tmp_path, -1, IterationProgress(), max_steps=3)
    assert [line.split("  ")[0] for line in printed(capsys)] == ["epoch 1", "epoch 2", "epoch 3"]


def test_a_disabled_bar_is_silent(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    callback = IterationProgress()
    callback.disable()
    train(tiny_llama, tmp_path, 2, callback)
    assert printed(capsys) == []


def test_one_bar_on_a_terminal_and_the_terminal_is_given_back(tiny_llama: Path, tmp_path: Path):
    seen = []

    class Spy(IterationProgress):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            assert self.progress is not None
            task = self.progress.tasks[0]
            seen.append((task.completed, task.total, "val accuracy 0.25" in task.fields["numbers"]))

    callback, output = Spy(), io.StringIO()
    callback.console = Console(file=output, force_terminal=True, width=120)
    train(tiny_llama, tmp_path, 3, callback)
    assert seen == [(1, 3, True), (2, 3, True), (3, 3, True)]
    assert callback.progress is None
    assert "epoch 1/3" not in output.getvalue() and "3/3" in output.getvalue()
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h") == 1


def test_the_terminal_is_given_back_after_a_failure(tiny_llama: Path, tmp_path: Path):
    callback, output = IterationProgress(), io.StringIO()
    callback.console = Console(file=output, force_terminal=True, width=120)

    def fail(_policy: PreTrainedModel) -> torch.optim.Optimizer:
        class Broken(torch.optim.SGD):
            def step(self, closure=None):
                raise RuntimeError("broken")

        return Broken(_policy.parameters())

    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(tmp_path, [callback]).fit(PolicyStub(tiny_llama, fail), loader(1))
    assert callback.progress is None
    assert output.getvalue().endswith("\x1b[?25h"), "the cursor is visible again"
