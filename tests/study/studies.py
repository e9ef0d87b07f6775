"""A study in a process of its own, which a test may kill."""

import subprocess
import sys
from pathlib import Path

_CODE = """
import sys
from rlsgd.study.command import main
end = int(sys.argv[1])
sys.exit(main(sys.argv[2:end], command=sys.argv[end:]))
"""


def begin(study: Path, *flags: str, command: list[str]) -> subprocess.Popen:
    """`rlsgd study STUDY FLAGS`, whose runs are started by `command`."""
    end = str(3 + len(flags))
    return subprocess.Popen([sys.executable, "-c", _CODE, end, study, *flags, *command])
