"""`rlsgd doctor`: what this machine has of what rlsgd uses, found by trying."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from rlsgd.core.command import PlainParser, run_command

DESCRIPTION = """\
Print versions, processor, devices, linear algebra, walls around programs, free disk and extras. The
walls are tried by running a program behind them. Exit status: 0, whatever is missing.
"""
EXTRAS = {name: name for name in ("vllm", "gguf", "wandb", "mlflow", "trackio")}  # its module
EXTRAS |= {"slurm": "submitit", "search": "optuna"}


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd doctor` and return its exit status."""
    parser = PlainParser(prog="rlsgd doctor", description=DESCRIPTION)
    return run_command("doctor", argv, parser, lambda _: print("\n".join(findings())))


def findings() -> Iterator[str]:
    """The lines, `what: found`."""
    from rlsgd.study.results import machine, versions  # imports yaml and more

    found = machine()
    yield "versions: " + ", ".join(f"{name} {one or 'missing'}" for name, one in versions().items())
    usable = len(os.sched_getaffinity(0))
    memory = f"{found['memory_bytes'] / 2**30:.1f} GiB of memory"
    yield f"machine: {found['processor']}, {usable} of {found['cores']} cores usable, {memory}"
    yield from _torch()
    yield from _walls()
    yield from _disk()
    for extra, module in EXTRAS.items():
        missing = f"not installed: pip install 'rlsgd[{extra}]'"
        yield f"extra {extra}: {'installed' if find_spec(module) else missing}"


def _torch() -> Iterator[str]:
    import torch

    kinds = {
        "MKL": torch.backends.mkl.is_available(),
        "oneDNN": torch.backends.mkldnn.is_available(),
    }
    blas = " and ".join(name for name, there in kinds.items() if there) or "neither MKL nor oneDNN"
    given = os.environ.get("OMP_NUM_THREADS")
    threads = f"{torch.get_num_threads()} threads (OMP_NUM_THREADS {given or 'not set'})"
    kernels = torch.backends.cpu.get_cpu_capability()
    yield f"linear algebra: {blas} in torch {torch.__version__}, {threads}, {kernels}"
    if not torch.cuda.is_available():
        yield "devices: CPU alone"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"device {number}: {device.name}, {device.total_memory / 2**30:.1f} GiB"


def _walls() -> Iterator[str]:
    from rlsgd.rewards.sandbox.base import Bubblewrap
    from rlsgd.rewards.sandbox.landlock import Landlock
    from rlsgd.rewards.sandbox.session import SandboxError

    for kind in (Bubblewrap, Landlock):
        try:
            kind().check()
        except SandboxError as error:
            yield f"wall {kind.__name__}: does not work: {' '.join(str(error).split())}"
        else:
            yield f"wall {kind.__name__}: works"


def _disk() -> Iterator[str]:
    from rlsgd.models.names import cache_folder

    for what, folder in (("here", Path.cwd()), ("cache", cache_folder().absolute())):
        there = next(one for one in (folder, *folder.parents) if one.is_dir())
        yield f"disk, {what}: {shutil.disk_usage(there).free / 2**30:.1f} GiB free ({folder})"
