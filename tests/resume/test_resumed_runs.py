"""A run that was stopped and went on has left what an undisturbed one leaves, bit for bit."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fork_server import ForkServer
from benchmarks.small_runs import (
    CALLBACKS,
    checkpoint,
    config,
    contents,
    differences,
    events,
    write_config,
)
from rlsgd.cli.main import main
from rlsgd.core.checkpoints import LazyTensors

LAST = ["--ckpt_path", "last"]
ALL_CALLBACKS = {**CALLBACKS, "EffectiveRank": {}, "OptimizerDynamics": {"figures_every_n": 0}}
# plain SGD has no state, SGD with momentum has one number for each weight
CASES = [
    (algorithm, optimizer, ranks)
    for ranks in (1, 2)
    for algorithm, optimizer in (
        ("GRPO", "plain SGD"),
        ("GRPO", "AdamW"),
        ("PPO", "SGD"),
        ("PPO", "AdamW"),
    )
]


def kill(place: str, call: int = 1, number: int = signal.SIGKILL, rank: int = 0) -> dict[str, Any]:
    return {"place": place, "call": call, "after": 1, "number": number, "rank": rank}


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory):
    """Settings and folder of a finished run; made once for each configuration."""
    made: dict[Any, tuple[dict[str, Any], Path]] = {}

    def make(algorithm: str, optimizer: str, ranks: int = 1) -> tuple[dict[str, Any], Path]:
        key = (algorithm, optimizer, ranks)
        if key not in made:
            callbacks = ALL_CALLBACKS if ranks == 1 else CALLBACKS
            settings = config(
                str(tiny_llama), algorithm, optimizer, ranks=ranks, epochs=3, callbacks=callbacks
            )
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            argv = write_config(folder, settings)
            assert server.run(folder, argv, ranks=ranks) == [0] * ranks, output(folder)
            made[key] = settings, folder
        return made[key]

    return make


def output(folder: Path) -> str:
    return (folder / "output.txt").read_text()[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "optimizer", "ranks"), CASES)
def test_resumed_equals_undisturbed(algorithm, optimizer, ranks, undisturbed, server, tmp_path):
    """Killed amid the second iteration, stopped at its end, and then left alone."""
    settings, whole = undisturbed(algorithm, optimizer, ranks)
    folder = tmp_path / "run"
    argv = write_config(folder, settings)
    # the fourth backward pass is that of the second optimizer step in the second iteration
    codes = server.run(folder, argv, ranks=ranks, fault=kill("backward", 4, rank=ranks - 1))
    assert codes[ranks - 1] == -9, output(folder)
    assert saved(folder) == ["iteration=1.ckpt"]
    stop = kill("rollout", number=signal.SIGTERM)
    assert server.run(folder, argv + LAST, ranks=ranks, fault=stop) == [143, 0][:ranks]
    assert saved(folder) == ["iteration=1.ckpt", "iteration=2.ckpt"]
    assert server.run(folder, argv + LAST, ranks=ranks) == [0] * ranks, output(folder)
    assert saved(folder) == ["iteration=2.ckpt", "iteration=3.ckpt"]
    assert list(differences(contents(folder), contents(whole))) == []


def test_what_is_compared_is_all_there_is(undisturbed):
    """The comparison above would see a difference: what it compares is there, and changes."""
    _, whole = undisturbed("PPO", "AdamW")
    found = contents(whole)
    names = {name.removeprefix("checkpoint: ") for name in found if name.startswith("checkpoint")}
    assert {name.split(".")[0] for name in names if "." in name} == {"policy", "value"}
    states = found["checkpoint: optimizer_states"][0]["state"]
    assert len(states) > 20 and all(len(state["exp_avg"]) == 64 for state in states.values())
    [scheduler] = found["checkpoint: lr_schedulers"]
    assert scheduler["last_epoch"] == 3
    assert scheduler["_last_lr"] == pytest.approx([1e-3 * 0.7**3] * 2, rel=1e-12)
    assert {"metrics.csv", "completions.jsonl", "hf/model.safetensors"} <= found.keys()
    steps = [step for step, _ in events(whole / "run")["loss"]]
    assert steps == sorted(set(steps)) and len(steps) == 3
    with (whole / "run" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["loss"]] == ["0", "1", "2"]
    other = {**found, "metrics.csv": found["metrics.csv"][:-1]}
    assert list(differences(other, found)) == ["metrics.csv differs"]


def test_the_reference_is_not_stored(undisturbed):
    _, whole = undisturbed("GRPO", "AdamW")  # with a KL penalty
    assert not [name for name in checkpoint(whole / "run") if name.startswith("reference")]


def test_deltas_across_a_resumption_are_one_chain_and_secrets_are_nowhere(
    undisturbed, server, tiny_llama, tmp_path
):
    settings, _ = undisturbed("GRPO", "AdamW")
    folder, out = tmp_path / "run", tmp_path / "out"
    argv = write_config(folder, settings)
    secrets = {"HF_TOKEN": "hf_SECRET", "WANDB_API_KEY": "SECRET"}
    assert server.run(folder, argv, env=secrets, fault=kill("rollout", 3)) == [-9]
    assert server.run(folder, argv + LAST, env=secrets) == [0]
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if b"SECRET" in path.read_bytes()]
    deltas = [str(folder / f"run/deltas/delta-epoch={epoch}.safetensors") for epoch in range(3)]
    assert main(["delta", "apply", str(tiny_llama), *deltas, str(out)]) == 0
    result, exported = LazyTensors.open(out), LazyTensors.open(folder / "run" / "hf")
    assert result.files.keys() == exported.files.keys()
    assert all(result[name].equal(exported[name]) for name in exported.files)


def test_killed_before_the_first_checkpoint_it_starts_over(undisturbed, server, tmp_path):
    settings, whole = undisturbed("GRPO", "AdamW")
    folder = tmp_path / "run"
    argv = write_config(folder, settings)
    assert server.run(folder, argv, fault=kill("backward")) == [-9]
    assert "completions.jsonl" in os.listdir(folder / "run"), "there is something to remove"
    assert server.run(folder, argv + LAST) == [0]
    assert "starting from the beginning" in (folder / "output.txt").read_text()
    assert list(differences(contents(folder), contents(whole))) == []


def test_a_finished_run_stays_as_it_is(undisturbed, server):
    _, whole = undisturbed("GRPO", "AdamW")
    before = contents(whole)
    assert server.run(whole, ["fit", "--config", "settings.yaml", *LAST]) == [0]
    assert list(differences(contents(whole), before)) == []
    assert server.run(whole, ["fit", "--config", "settings.yaml"]) == [2]
    assert "go on with --ckpt_path last" in output(whole)
    assert list(differences(contents(whole), before)) == []


def test_slurm_requeues_between_two_iterations(undisturbed, server, tmp_path):
    settings, whole = undisturbed("GRPO", "AdamW")
    folder = tmp_path / "run"
    argv = write_config(folder, settings)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/calls\n")
    scontrol.chmod(0o755)
    slurm = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NAME": "train", "JOB_ID": "77"}
    slurm |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    warned = kill("rollout", 2, number=signal.SIGUSR1)
    assert server.run(folder, argv, env=env, fault=warned) == [128 + signal.SIGUSR1]
    assert (tmp_path / "calls").read_text() == "requeue 77\n"
    assert saved(folder) == ["iteration=1.ckpt", "iteration=2.ckpt"]
    assert not list(folder.glob("hpc_ckpt*"))
    # SLURM runs the same command again, without --ckpt_path
    assert server.run(folder, argv, env={**env, "SLURM_RESTART_COUNT": "1"}) == [0]
    assert list(differences(contents(folder), contents(whole))) == []
