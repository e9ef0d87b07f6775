"""A tokenizer's chat template, tried once before it is trusted with a data set."""

from __future__ import annotations

import datetime
import inspect
import re
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from rlsgd.data.cells import Turn
from rlsgd.data.tasks.processor_limit import TooSlow, processor_limit

MOST_SECONDS = 2.0  # of processor time for one chat; templates take less than a millisecond
MOST_CHARACTERS = 10_000_000
# a call that writes today's date, with its format in quotes
_DATED = re.compile(r"""\bstrftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
_SYSTEM, _USER, _ASSISTANT = "Sentinel-1-system", "Sentinel-2-user", "Sentinel-3-assistant"


class ChatTemplate:
    """Renders chats, with the same text on every day and on every call.

    Args:
        tokenizer: tokenizer with a chat template.
        arguments: passed on to the template, such as `enable_thinking: false`.
        date: value for a template that writes today's date, as YYYY-MM-DD.

    Raises:
        ValueError: the template cannot render a chat of one question, or does not know an argument.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any], date: str
    ) -> None:
        self.tokenizer = tokenizer
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise ValueError(f"--data.chat_template: {error}") from None
        self._check_arguments(arguments)
        self.arguments = dict(arguments)
        if re.search(r"\bstrftime_now\b", self.source):
            self.source = _DATED.sub(lambda call: repr(_fixed(date).strftime(call[2])), self.source)
            if re.search(r"\bstrftime_now\s*\(", self.source):
                raise ValueError(
                    "--data.chat_template: the template writes today's date in a form that it "
                    "computes; give the tokenizer another, or set --data.chat_template false"
                )
            rank_zero_info(
                f"the chat template writes today's date; it gets {date} on every day "
                "(--data.template_date), so that prompts stay the same"
            )
        question = [{"role": "user", "content": _USER}]
        first, second = self.text(question), self.text(question)
        if first != second:
            raise ValueError(
                "--data.chat_template: the template renders the same chat differently each time; "
                "give the tokenizer another, or set --data.chat_template false"
            )
        if _USER not in first:
            raise ValueError(
                "--data.chat_template: the template leaves the user's text out of the prompt; give "
                "the tokenizer another, or set --data.chat_template false"
            )

    def text(self, turns: list[Turn], *, prompt: bool = True) -> str:
        """The chat as text, with the opening of the assistant's turn if it is a prompt.

        Raises:
            ValueError: the template raises, or does not end.
        """
        try:
            with processor_limit(MOST_SECONDS):
                text = str(
                    self.tokenizer.apply_chat_template(
                        self._folded(turns),
                        chat_template=self.source,
                        tokenize=False,
                        add_generation_prompt=prompt,
                        **self.arguments,
                    )
                )
        except TooSlow:
            raise ValueError(
                f"--data.chat_template: the template took more than {MOST_SECONDS:g} seconds for "
                f"one chat, so it may never end; give the tokenizer another, or set "
                "--data.chat_template false"
            ) from None
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"--data.chat_template: the template refuses the chat that ends with "
                f"{turns[-1]['content'][:60]!r}: {reason:.300}"
            ) from None
        if len(text) > MOST_CHARACTERS:
            raise ValueError(
                f"--data.chat_template: the template made {len(text):,} characters of one chat"
            )
        return text

    def token_ids(self, text: str) -> list[int]:
        """Tokens of a rendered chat; the template has written the special ones already."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    @cached_property
    def turn_end(self) -> int | None:
        """The token that ends a turn of the assistant's, where it is a single one."""
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
        try:
            _, found, tail = self.text(turns, prompt=False).rpartition(_ASSISTANT)
        except ValueError:
            return None  # a template of single questions
        tokenizer: Any = self.tokenizer
        added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        for token_id in self.token_ids(tail) if found else []:
            if token_id in added:
                return token_id
            if str(self.tokenizer.decode([token_id])).strip():
                return None
        return None

    def _folded(self, turns: list[Turn]) -> list[Turn]:
        """The system's words in front of the first question, if the template has no such role."""
        if turns[0]["role"] != "system" or len(turns) < 2 or not self._refuses_system:
            return turns
        system, first, *rest = turns
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    @cached_property
    def _refuses_system(self) -> bool:
        turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        try:
            with processor_limit(MOST_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, **self.arguments
                )
            refused = "" if _SYSTEM in str(text) else "it leaves it out"
        except (Exception, TooSlow) as error:
            refused = " ".join(str(error).split()) or type(error).__name__
        if refused:
            rank_zero_info(
                f"the chat template refuses a system message ({refused:.200}); its text goes in "
                "front of the first question"
            )
        return bool(refused)

    def _check_arguments(self, arguments: dict[str, Any]) -> None:
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, "messages"}
        words = set(re.findall(r"[A-Za-z_]\w*", self.source))
        for name in arguments:
            if name in (taken | {"strftime_now"}) - {"kwargs"}:
                raise ValueError(f"--data.template_arguments: {name!r} is not for you to set")
            if name not in words:
                close = " or ".join(get_close_matches(name, words))
                raise ValueError(
                    f"--data.template_arguments: the chat template does not use {name!r}"
                    + (f"; did you mean {close}?" if close else "")
                )


def _fixed(date: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise ValueError(f"--data.template_date {date!r} is no date like 2024-07-26") from None
