"""Whether a name on the Hugging Face hub can be had, before its clients try again and again."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 3.0


def require_hub(name: str, flag: str, *, kind: str = "model", filename: str | None = None) -> None:
    """Refuse a name that is in no cache while the hub cannot be reached.

    Args:
        name: `owner/name`.
        flag: what the user wrote it after.
        kind: `model` or `dataset`.
        filename: a file that a cached copy would have.

    Raises:
        ValueError: at once, not after the retries of the hub's client.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    folder = name.split("/")[0]
    if Path(folder).is_dir():
        raise ValueError(f"{flag} {name}: there is no such folder in {Path(folder).absolute()}")
    cached = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots")
    if filename is not None and try_to_load_from_cache(name, filename, repo_type=kind):
        return
    if filename is None and cached.is_dir():
        return
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{flag} {name}: no such folder, and not in the cache of the hub, which HF_HUB_OFFLINE "
            "forbids to ask; name a folder, or unset HF_HUB_OFFLINE"
        )
    if not _answers(constants.ENDPOINT):
        raise ValueError(
            f"{flag} {name}: no such folder, not in the cache of the hub, and "
            f"{constants.ENDPOINT} cannot be reached; name a folder, or connect"
        )


def _answers(endpoint: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # it decides
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=SECONDS).close()
    except OSError:
        return False
    return True
