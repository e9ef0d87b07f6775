"""What rewards read of a completion: its text, with the thinking that the prompt has opened."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


class CompletionReader:
    """Turns completions into the texts that are scored.

    Args:
        tokenizer: tokenizer of the policy.
        thinking_tags: texts that open and close thinking; None for none.
        keep_special_tokens: keep all special tokens in the text but those that end it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        thinking_tags: tuple[str, str] | None,
        keep_special_tokens: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.opening = None if thinking_tags is None else thinking_tags[0]
        special: set[Any] = {*tokenizer.all_special_ids, *_special_added(tokenizer)}
        kept: set[Any] = set(special) if keep_special_tokens else set()
        if thinking_tags is not None:
            ids: Any = [tokenizer.convert_tokens_to_ids(tag) for tag in thinking_tags]
            kept |= special & set(ids)
        self.kept = kept
        self.special = special

    def text(self, token_ids: list[int], ends: list[int]) -> str:
        """The decoded completion, without the token that ended it.

        Args:
            token_ids: of the completion.
            ends: tokens that end a completion.
        """
        if not self.kept:
            return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        pad: Any = self.tokenizer.pad_token_id
        dropped = (self.special - self.kept) | {pad, *ends}
        kept = [token_id for token_id in token_ids if token_id not in dropped]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def scored(self, prompt: str, completion: str) -> str:
        """The completion, with the opening tag where the chat template has put it in the prompt."""
        if self.opening is None or not prompt.rstrip().endswith(self.opening):
            return completion
        return prompt[prompt.rindex(self.opening) :] + completion


def _special_added(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [token_id for token_id, token in added.items() if token.special]


def checked_tags(tags: tuple[str, str] | None) -> tuple[str, str] | None:
    """The two tags, if they can be told apart.

    Raises:
        ValueError: they are not two different texts.
    """
    if tags is None:
        return None
    if len(tags) != 2 or not all(tags) or tags[0] in tags[1] or tags[1] in tags[0]:
        raise ValueError(
            f"--data.thinking_tags must be two different texts, or null; got {list(tags)}"
        )
    return tags[0], tags[1]
