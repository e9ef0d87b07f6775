"""The command `rlsgd`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys

from rlsgd.core.command import UsageError, debugging, did_you_mean, fault, refuse

HELP = """\
usage: rlsgd COMMAND ...

Optimizers in reinforcement-learning post-training of language models.

commands:
  fit        train a policy:              rlsgd fit --config grpo_embedded
  validate   accuracy on the validation problems, with intervals
  test       the same on the test problems; --model.eval_samples 8 adds avg@8, pass@k, majority@8
  predict    write greedy completions of the test problems to predictions.jsonl
  analyze    what tuning did to a checkpoint's weights: rlsgd analyze BASE TUNED
  lineage    which of several models a checkpoint was tuned from
  predict-sparsity  the unchanged share to expect of an update of a given length
  data       fetch, check and clean the papers' data sets: rlsgd data list
  delta      what changed between two checkpoints, as a small exact file: rlsgd delta --help
  memory     what training takes of memory and network: rlsgd memory --model qwen3-1.7b
  rates      learning rates of other optimizers, from a short pilot of a config
  study      run the arms of a study and report: rlsgd study quickstart
  recipes    what ships, and a copy to edit: rlsgd recipes copy grpo_embedded
  push       an exported model to the Hugging Face hub: rlsgd push runs/x/hf owner/name
  doctor     versions, devices, walls, free disk and extras of this machine
  report     finished studies and runs on one HTML page: rlsgd report runs/quickstart

rlsgd COMMAND --help lists a command's flags; rlsgd fit --model.help GRPO those of a class.
rlsgd COMMAND --debug shows where an error comes from.
"""

COMMANDS = {
    "study": "rlsgd.study.command",
    "analyze": "rlsgd.analysis.command",
    "lineage": "rlsgd.analysis.lineage",
    "predict-sparsity": "rlsgd.analysis.predict_sparsity",
    "data": "rlsgd.preparation.command",
    "delta": "rlsgd.deltas.command",
    "memory": "rlsgd.planner.command",
    "recipes": "rlsgd.cli.recipes",
    "push": "rlsgd.cli.push",
    "doctor": "rlsgd.cli.doctor",
    "rates": "rlsgd.cli.rates",
    "report": "rlsgd.report.command",
}
TRAINING = ("fit", "validate", "test", "predict")
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
    debug, argv = "--debug" in argv, [word for word in argv if word != "--debug"]
    with debugging(debug):
        if not argv:
            return refuse("rlsgd", "--debug: needs a command")
        if argv[0] in COMMANDS:
            return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        if argv[0] in TRAINING:
            return train(argv)
        advice = did_you_mean(argv[0], [*COMMANDS, *TRAINING])
        return refuse(
            "rlsgd", f"{argv[0]}: there is no such command{advice or '; see rlsgd --help'}"
        )


def train(argv: list[str]) -> int:
    """`fit`, `validate`, `test` or `predict` through LightningCLI.

    Modules of one's own, such as `--data.reward my_rewards.shorter`, may lie in the present folder.
    """
    sys.path.append(os.getcwd())
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
    except UsageError as error:
        return refuse("rlsgd", str(error))
    except Exception as error:
        if (message := user_error(error)) is None:
            return fault("rlsgd")  # not one of ours: the traceback is worth more than the message
        return refuse("rlsgd", message)
    return 0


def user_error(error: Exception) -> str | None:
    """What is wrong with a flag or with the disk; None for anything else."""
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"no space left on the device while writing {error.filename or 'a file'}; what was "
            "saved before is untouched. Free space, or set --trainer.default_root_dir to another "
            "disk"
        )
    if not isinstance(error, ValueError):
        return None
    found = re.search(r"^(?:\s*- )?(--[a-z].*)$", str(error), re.MULTILINE)
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())
