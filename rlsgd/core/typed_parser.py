"""jsonargparse's parser, apart from `command.py` so that `rlsgd --help` does not import it."""

from __future__ import annotations

import jsonargparse

from rlsgd.core.command import OneLine


class TypedParser(OneLine, jsonargparse.ArgumentParser):
    """jsonargparse's."""
