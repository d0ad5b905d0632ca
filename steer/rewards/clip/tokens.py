"""Prompts to token ids, with open_clip's own tokenizers; nothing is cut silently."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Tokenizer:
    """An open_clip tokenizer that says what it cuts off or does not know.

    Args:
        tokenizer: What `open_clip.get_tokenizer` returns.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.window = int(tokenizer.context_length)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """`(B, window)` int64 token ids; warns for each prompt that loses words."""
        for prompt in prompts:
            self._warn(prompt)
        return self.tokenizer(list(prompts))

    def _warn(self, prompt: str) -> None:
        ids = self._ids(prompt)
        room = self.window - self._count_marks()
        if len(ids) > room:
            warnings.warn(
                f"the prompt has {len(ids)} tokens, the reward reads {room}; cut off: "
                f"{self._text(ids[room:])!r} (prompt: {prompt!r})",
                stacklevel=2,
            )
        unknown = self._unknown_words(prompt, ids)
        if unknown:
            warnings.warn(
                f"not in the reward's vocabulary: {', '.join(map(repr, unknown))} "
                f"(prompt: {prompt!r})",
                stacklevel=2,
            )

    def _ids(self, text: str) -> list[int]:
        """Token ids without start and end, not cut."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:  # open_clip's own BPE
            return list(self.tokenizer.encode(text))
        clean = getattr(self.tokenizer, "clean_fn", str)
        return list(inner(clean(text), add_special_tokens=False, verbose=False).input_ids)

    def _count_marks(self) -> int:
        """How many tokens mark start and end."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        return 2 if inner is None else inner.num_special_tokens_to_add()

    def _text(self, ids: Sequence[int]) -> str:
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode(ids).strip()

    def _unknown_words(self, prompt: str, ids: Sequence[int]) -> list[str]:
        inner = getattr(self.tokenizer, "tokenizer", None)
        unknown = getattr(inner, "unk_token_id", None)
        if unknown is None or unknown not in ids:
            return []
        return [word for word in prompt.split() if unknown in self._ids(word)]
