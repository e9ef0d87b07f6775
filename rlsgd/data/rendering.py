"""From a problem to the token ids that the model sees."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from rlsgd.core.problems import Problem, Prompt


class PromptRenderer:
    """Renders questions as chats or as plain text and tokenizes them once.

    Args:
        tokenizer: with or without a chat template.
        system_prompt: goes before the question.
        chat_template: True applies the tokenizer's template, False does not, None does if there
            is one.
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

    def render(self, problem: Problem) -> Prompt:
        """The prompt of a problem.

        Raises:
            ValueError: it is empty, too long, or a chat without a template.
        """
        if self.uses_template:
            text, token_ids = self._chat(problem)
        else:
            text, token_ids = self._plain(problem)
        if not token_ids:
            raise ValueError(f"--data.task: the prompt of {problem.question!r} has no tokens")
        if len(token_ids) > self.max_prompt_tokens:
            raise ValueError(
                f"--data.max_prompt_tokens {self.max_prompt_tokens} is less than the "
                f"{len(token_ids)} tokens of the prompt {problem.question[:80]!r}...; raise it or "
                "leave out such questions"
            )
        return Prompt(problem, text, token_ids)

    def _chat(self, problem: Problem) -> tuple[str, list[int]]:
        messages = [dict(turn) for turn in problem.metadata.get("messages", ())]
        messages = messages or [{"role": "user", "content": problem.question}]
        messages[-1]["content"] += self.prompt_suffix
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        options: dict[str, Any] = {"add_generation_prompt": True}
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        # The template writes the special tokens; tokenizing its text would add a second BOS.
        encoded: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, **options
        )
        return str(text), list(encoded["input_ids"])

    def _plain(self, problem: Problem) -> tuple[str, list[int]]:
        if "messages" in problem.metadata:
            raise ValueError(
                "--data.chat_template: the questions are chats, which need a chat template, and "
                "the tokenizer has none or it is switched off"
            )
        text = problem.question + self.prompt_suffix
        if self.system_prompt is not None:
            text = f"{self.system_prompt}\n\n{text}"
        return text, list(self.tokenizer(text)["input_ids"])  # pyright: ignore[reportArgumentType]
