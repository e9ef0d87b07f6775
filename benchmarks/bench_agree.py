"""Runs the agreement check of one case: rlsgd's update, then TRL's from the same rollout.

    python -m benchmarks.bench_agree RLSGD_SETTINGS.json TRL_SETTINGS.json

Started by benchmarks/bench.py, in a process of its own, whose memory does not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import bench_rlsgd, bench_trl


def run(ours: Path, theirs: Path) -> None:
    """Leave both sides' losses and gradients in the folder that the settings name.

    Args:
        ours: the settings of rlsgd's worker.
        theirs: those of TRL's.
    """
    if status := bench_rlsgd.run(ours):
        raise SystemExit(status)
    bench_trl.run(theirs)


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
