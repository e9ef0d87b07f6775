"""From a problem to the token ids that the model sees."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from rlsgd.core.problems import Problem, Prompt
from rlsgd.data.templates import ChatTemplate


class PromptRenderer:
    """Renders questions as chats or as plain text and tokenizes them once.

    Args:
        tokenizer: tokenizer with or without a chat template.
        system_prompt: goes before the question.
        chat_template: True applies the tokenizer's template, False does not, None does if there
            is one.
        template_arguments: passed on to the template.
        template_date: value that a template gets for today's date.
        prompt_suffix: added to the end of every question.
        max_prompt_tokens: the longest prompt allowed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None,
        chat_template: bool | None,
        prompt_suffix: str,
        max_prompt_tokens: int,
        template_arguments: dict[str, Any] | None = None,
        template_date: str = "2024-07-26",
    ) -> None:
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat_template and not has_template:
            raise ValueError(
                "--data.chat_template is true, but the tokenizer has no chat template; leave the "
                "flag out to use plain text"
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.uses_template = has_template if chat_template is None else chat_template
        self.prompt_suffix = prompt_suffix
        self.max_prompt_tokens = max_prompt_tokens
        if template_arguments and not self.uses_template:
            raise ValueError(
                "--data.template_arguments: no chat template is applied, so nothing takes them"
            )
        self.template: ChatTemplate | None = None
        if self.uses_template:
            self.template = ChatTemplate(tokenizer, template_arguments or {}, template_date)

    def render(self, problem: Problem) -> Prompt:
        """The prompt of a problem.

        Raises:
            ValueError: it is empty, too long, or a chat without a template.
        """
        prompt = self.prompt_of(problem)
        if len(prompt.token_ids) > self.max_prompt_tokens:
            raise ValueError(
                f"--data.max_prompt_tokens {self.max_prompt_tokens} is less than the "
                f"{len(prompt.token_ids)} tokens of the prompt {problem.question[:80]!r}...; raise "
                "it, or leave such questions out with --data.overlong drop"
            )
        return prompt

    def prompt_of(self, problem: Problem) -> Prompt:
        """The prompt of a problem, however long it is."""
        text, token_ids = self._chat(problem) if self.uses_template else self._plain(problem)
        if not token_ids:
            raise ValueError(f"--data.task: the prompt of {problem.question!r} has no tokens")
        return Prompt(problem, text, token_ids)

    def fits(self, problem: Problem) -> bool:
        """Whether the prompt is within `max_prompt_tokens`."""
        return len(self.prompt_of(problem).token_ids) <= self.max_prompt_tokens

    @cached_property
    def turn_ends(self) -> list[int]:
        """The token by which the template ends a turn, if it is another than eos; said once."""
        end = None if self.template is None else self.template.turn_end
        if end is None or end == self.tokenizer.eos_token_id:
            return []
        rank_zero_info(
            f"the chat template ends a turn with {self.tokenizer.convert_ids_to_tokens(end)!r}, "
            f"not with eos ({self.tokenizer.eos_token!r}): completions stop at either"
        )
        return [end]

    def _chat(self, problem: Problem) -> tuple[str, list[int]]:
        turns = [dict(turn) for turn in problem.metadata.get("messages", ())]
        turns = turns or [{"role": "user", "content": problem.question}]
        turns[-1]["content"] += self.prompt_suffix
        if self.system_prompt is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        assert self.template is not None
        text = self.template.text(turns)
        return text, self.template.token_ids(text)

    def _plain(self, problem: Problem) -> tuple[str, list[int]]:
        if [turn["role"] for turn in problem.metadata.get("messages", ())] not in ([], ["user"]):
            raise ValueError(
                "--data.chat_template: the questions are chats, which need a chat template, and "
                "the tokenizer has none or it is switched off"
            )
        text = problem.question + self.prompt_suffix
        if self.system_prompt is not None:
            text = f"{self.system_prompt}\n\n{text}"
        token_ids: list[int] = list(self.tokenizer(text)["input_ids"])  # pyright: ignore
        return text, token_ids[: len(token_ids) - self._appended]

    @cached_property
    def _appended(self) -> int:
        """Special tokens that the tokenizer adds after a text: a prompt that ends is no prompt."""
        ids: Any = self.tokenizer("a")["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        count = 0
        while count < len(ids) and ids[-1 - count] in special:
            count += 1
        if count:
            tokens = self.tokenizer.convert_ids_to_tokens(ids[-count:])
            rank_zero_info(f"the tokenizer ends every text with {tokens}; prompts are without")
        return count
