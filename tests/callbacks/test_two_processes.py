"""All callbacks under two processes: every collective is joined by both, each file written once."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd import callbacks
from rlsgd.callbacks import effective_rank, update_sparsity
from tests.callbacks.callback_stub import (
    PolicyStub,
    Scripted,
    jsonl,
    loader,
    make_rollouts,
    make_trainer,
    values,
)


def grow(policy: PreTrainedModel) -> None:
    next(policy.parameters())[0, 0] += 1.0


def one_rank(rank: int, port: int, model: str, folder: str) -> None:
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    seed_everything(1)
    module = PolicyStub(
        Path(model), lambda policy: Scripted(policy, [grow] * 4), random_weights=True
    )
    trainer = make_trainer(
        Path(folder),
        # NoiseScale compares the microbatches of a step, and here each is a step
        [getattr(callbacks, name)() for name in callbacks.__all__ if name != "NoiseScale"],
        epochs=2,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
    )
    measured = Counter()

    def counted(name, function):
        def call(*arguments, **settings):
            measured[name] += 1
            return function(*arguments, **settings)

        return call

    update_sparsity.count_unchanged = counted("counts", update_sparsity.count_unchanged)
    effective_rank.squared_norm = counted("ranks", effective_rank.squared_norm)
    batches = [make_rollouts([f"rank {rank} batch {batch}"], [rank]) for batch in range(2)]
    trainer.fit(module, loader(batches, shuffle=False))
    # 20 tensors at two measurements of two epochs, and 15 matrices, of which the first has 8
    assert measured == {"counts": 20 * 2 * 2 / 2, "ranks": 2 * (8 - rank)}
    trainer.predict(module, loader(batches, shuffle=False))
    assert Path(trainer.log_dir or "") == Path(folder)


@pytest.mark.slow
def test_every_file_is_written_once_and_holds_what_it_must(tiny_llama: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(
        one_rank, (port, str(tiny_llama), str(tmp_path / "run")), nprocs=2, daemon=True
    )
    run = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(run / "hf")
    numel = sum(parameter.numel() for parameter in model.parameters())
    assert values(run, "update/unchanged_fp32") == pytest.approx([1 - 1 / numel] * 2, abs=1e-12)
    assert values(run, "update/effective_rank") == pytest.approx([1 / 15] * 2)
    assert len(values(run, "memory/parameter_bytes")) == 2
    assert values(run, "visibility/step_unmoved") == pytest.approx([1 - 1 / numel] * 4, abs=1e-12)
    assert len(values(run, "dynamics/weight_to_gradient")) == 2
    for name in ("update_sparsity", "effective_rank", "optimizer_dynamics"):
        assert [record["epoch"] for record in jsonl(run / f"{name}.jsonl")] == [0, 1]
    sampled = [record["completion"] for record in jsonl(run / "completions.jsonl")]
    assert sampled == ["rank 0 batch 0"] * 2, "the first batch of each epoch, on the first rank"
    predicted = [record["completion"] for record in jsonl(run / "predictions.jsonl")]
    assert predicted == [f"rank {r} batch {b}" for b in range(2) for r in range(2)]
    assert len(list((run / "starting_weights").glob("*.safetensors"))) == 20
    assert list(run.glob("scratch-*")) == []
