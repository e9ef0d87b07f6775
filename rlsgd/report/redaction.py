"""Keeps credentials that a command or a configuration holds out of a page that is passed on."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
# the last word of a setting's name that makes its value a credential
_NAME = r"(?:api[_-]?key|token|password|passwd|secret|credentials?|private[_-]?key|access[_-]?key)"
_SECRET_KEY = re.compile(rf"(?:^|[_.-]){_NAME}$", re.IGNORECASE)
_SETTING = re.compile(rf"((?:\b|[\w.-]*[_.-]){_NAME}[=:]\s*|--[\w.-]*{_NAME}\s+)\S+", re.IGNORECASE)
# tokens by their form: Hugging Face, OpenAI and its like, GitHub, AWS, Slack, W&B, user:pass@host
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bAKIA[A-Z0-9]{16}\b|\bxox[abprs]-[\w-]{10,}|\bglpat-[\w-]{16,}|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
)


def redacted_text(text: str) -> str:
    """`text` without values of settings named like credentials, and without known token forms."""
    return _FORMS.sub(REDACTED, _SETTING.sub(rf"\1{REDACTED}", text))


def redacted(value: Any) -> Any:
    """A nested configuration with every credential replaced."""
    if isinstance(value, dict):
        return {
            key: REDACTED if inner and _SECRET_KEY.search(str(key)) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value
