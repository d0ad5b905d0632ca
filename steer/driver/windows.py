"""Prompts that are longer than the windows of the pipeline's tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steer.core.warn import warn
from steer.driver.call import Call


def warn_of_cut_prompts(call: Call) -> None:
    """Warn of prompts that are longer than every tokenizer's window, and say what is cut."""
    for text in call.texts:
        cuts = [_cut(tokenizer, text, window) for tokenizer, window in _tokenizers(call)]
        if cuts and all(cuts):
            message = (
                f"prompt {text[:40]!r}... is longer than the tokenizer's window; the pipeline "
                f"does not see {min(cuts, key=len)!r}: shorten the prompt"
            )
            warn(message, stacklevel=3)


def _tokenizers(call: Call) -> Iterator[tuple[Any, int]]:
    """Tokenizers that are used, each with the length of its window in tokens."""
    limit = call.values.get("max_sequence_length")
    for suffix in ("", "_2", "_3", "_4"):
        tokenizer = getattr(call.pipe, f"tokenizer{suffix}", None)
        encoder = getattr(call.pipe, f"text_encoder{suffix}", None)
        window = getattr(tokenizer, "model_max_length", None)
        if encoder is None or not isinstance(window, int) or not callable(tokenizer):
            continue
        clip = "CLIP" in type(tokenizer).__name__
        yield tokenizer, limit if isinstance(limit, int) and not clip else window


def _cut(tokenizer: Any, text: str, window: int) -> str:
    """The end of a text that does not fit into a tokenizer's window."""
    if len(text) < window:  # a token has at least one character
        return ""
    seen = tokenizer(text, truncation=True, max_length=window).input_ids
    whole = tokenizer(text, truncation=False, verbose=False).input_ids
    lost = len(whole) - len(seen)
    if lost <= 0:
        return ""
    closing = 1 if whole[-1] == seen[-1] else 0
    return tokenizer.decode(whole[len(seen) - closing : len(whole) - closing]).strip()
