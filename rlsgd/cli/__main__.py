"""`python -m rlsgd.cli`: the command, where no script is installed."""

import sys

from rlsgd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
