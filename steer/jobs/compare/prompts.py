"""Prompts and sets of them, with their categories."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One prompt, and the set's category for it where it has some."""

    text: str
    category: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts in their order.

    Attributes:
        name: Of the set, the file's name, or `"list"`.
        prompts: The prompts.
        source: Where they come from, for the page.
    """

    name: str
    prompts: tuple[Prompt, ...]
    source: str

    @property
    def texts(self) -> list[str]:
        """The prompts' texts."""
        return [prompt.text for prompt in self.prompts]

    @property
    def categories(self) -> list[str]:
        """The categories in the order in which they appear; none where there is but one."""
        found = list(dict.fromkeys(p.category for p in self.prompts if p.category is not None))
        return found if len(found) > 1 else []

    @property
    def sha256(self) -> str:
        """Of the texts and categories: equal sets have equal digests."""
        rows = [[p.text, p.category] for p in self.prompts]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
