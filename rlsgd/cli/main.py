"""The command `rlsgd`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import re
import sys

HELP = """\
usage: rlsgd COMMAND ...

Optimizers in reinforcement-learning post-training of language models.

commands:
  fit        train a policy:              rlsgd fit --config configs/grpo_embedded.yaml
  validate   accuracy on the validation problems, with intervals
  test       the same on the test problems; --model.eval_samples 8 adds avg@8, pass@k, majority@8
  predict    write greedy completions of the test problems to predictions.jsonl
  analyze    what tuning did to a checkpoint's weights: rlsgd analyze BASE TUNED
  data       fetch, check and clean the papers' data sets: rlsgd data list
  delta      what changed between two checkpoints, as a small exact file: rlsgd delta --help
  memory     what training takes of memory and network: rlsgd memory --model qwen3-1.7b
  study      run the arms of a study and report: rlsgd study configs/studies/quickstart.yaml
  report     finished studies and runs on one HTML page: rlsgd report runs/quickstart

rlsgd COMMAND --help lists a command's flags; rlsgd fit --model.help GRPO those of a class.
"""


# no space, over the quota, or larger than a file may be
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 3 where training diverged, 130 or 143 by a signal."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if argv[0] == "--version":
        from rlsgd import __version__

        print(__version__)
        return 0
    if argv[0] == "study":
        from rlsgd.study.command import main as study

        return study(argv[1:])
    if argv[0] == "analyze":
        from rlsgd.analysis.command import main as analyze

        return analyze(argv[1:])
    if argv[0] == "data":
        from rlsgd.preparation.command import main as data

        return data(argv[1:])
    if argv[0] == "delta":
        from rlsgd.deltas.command import main as delta

        return delta(argv[1:])
    if argv[0] == "memory":
        from rlsgd.planner.command import main as memory

        return memory(argv[1:])
    if argv[0] == "report":
        from rlsgd.report.command import main as report

        return report(argv[1:])
    return train(argv)


def train(argv: list[str]) -> int:
    """`fit`, `validate`, `test` or `predict` through LightningCLI."""
    from rlsgd.cli.training import TrainingCLI
    from rlsgd.core.types import DivergedError
    from rlsgd.resume.signals import exit_code

    try:
        TrainingCLI.run(argv)
    except (KeyboardInterrupt, SystemExit) as end:
        if (code := exit_code(end)) is None:
            raise
        return code
    except DivergedError as error:
        print(f"rlsgd: diverged: {error}", file=sys.stderr)
        return DivergedError.EXIT_CODE
    except ValueError as error:
        message = user_error(str(error))
        if message is None:
            raise  # not one of ours: the traceback is worth more than the message
        print(f"rlsgd: error: {message}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"rlsgd: error: no space left on the device while writing {error.filename or 'a file'};"
            " what was saved before is untouched. Free space, or set --trainer.default_root_dir to "
            "another disk",
            file=sys.stderr,
        )
        return 2
    return 0


def user_error(message: str) -> str | None:
    """The line that names a flag, out of what jsonargparse wraps around a constructor's error."""
    found = re.search(r"^(?:\s*- )?(--[a-z].*)$", message, re.MULTILINE)
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())
