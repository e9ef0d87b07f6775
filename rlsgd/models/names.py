"""What a user may call a model by; imports nothing that loads one."""

from __future__ import annotations

import os
from pathlib import Path

from rlsgd.core.hub import require_hub
from rlsgd.core.named_files import check_model_folder

EMBEDDED = Path(__file__).parents[1] / "assets" / "embedded"
PREPARED_BY = {
    "smollm2-135m-instruct": "rlsgd data prepare smollm2",
    "small-text-llama": "rlsgd data prepare text",
    "embedded-bf16": "python tools/prepare_on_grid.py",
    **dict.fromkeys(("llama-c4-130m", "llama-c4-350m", "llama-c4-1b"), "rlsgd data prepare c4"),
}


def cache_folder() -> Path:
    """Where prepared models live: `$RLSGD_CACHE`, else `~/.cache/rlsgd`."""
    return Path(os.environ.get("RLSGD_CACHE") or Path.home() / ".cache" / "rlsgd")


def resolve_model(path: str, flag: str = "--model.policy") -> str:
    """Turn the name of a model that a user wrote into a local folder or a hub name.

    Args:
        path: `embedded` (the arithmetic model inside the package), the name of a model prepared in
            the cache (`smollm2-135m-instruct`), a local folder, or a hub name `owner/name`.
        flag: what the user wrote it after, for the error.

    Raises:
        ValueError: nothing of that name is there, or its index names files elsewhere.
    """
    if path == "embedded":
        return str(EMBEDDED)
    if not path:
        raise ValueError(f"{flag} is empty; name a model folder or 'embedded'")
    for folder in (Path(path), cache_folder() / path):
        if folder.is_dir():
            try:
                check_model_folder(folder)
            except ValueError as error:
                raise ValueError(f"{flag} {path}: {error}") from error
            return path if folder == Path(path) else str(folder)
    prepared = cache_folder() / path
    if path in PREPARED_BY:
        raise ValueError(
            f"{flag} {path}: not prepared yet ({prepared} is not there). Run: {PREPARED_BY[path]}"
        )
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        require_hub(path, flag, filename="config.json")
        return path
    raise ValueError(
        f"{flag} {path}: no such folder, and not a hub name (owner/name), 'embedded' or a "
        f"model prepared under {cache_folder()}"
    )
