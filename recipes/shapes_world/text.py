"""The world's own CLIP tokenizer: byte-pair merges under which every caption word is one token."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from steer.shapes.captions import VOCABULARY


CONTEXT_LENGTH = 20
START, END = "<|startoftext|>", "<|endoftext|>"
Pair: TypeAlias = tuple[str, str]


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Byte-pair rules under which each word is one token, the same every time.

    Each word in alphabetical order is merged by the rules so far, and what is left of it from the
    left by new ones; a later rule never comes before an earlier one, so no earlier word changes.
    """
    merges: dict[Pair, int] = {}
    for word in sorted(words):
        first, *rest = _merge([*word[:-1], word[-1] + "</w>"], merges)
        for piece in rest:
            merges[first, piece] = len(merges)
            first += piece
    return list(merges)


def _merge(pieces: list[str], merges: dict[Pair, int]) -> list[str]:
    while True:
        ranks = {i: merges[p] for i, p in enumerate(pairwise(pieces)) if p in merges}
        if not ranks:
            return pieces
        at = min(ranks, key=ranks.__getitem__)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the merges from the vocabulary, write the tokenizer to `folder` and load it.

    Letters, digits and common punctuation are tokens too, so that any prompt can be encoded. The
    end token has the highest id: OpenAI-style text towers pool there.
    """
    merges = learn_merges(VOCABULARY)
    alphabet = string.ascii_lowercase + string.digits + ".,:;!?'\"()-&/"
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


class Encoder:
    """Captions to token ids `(B, CONTEXT_LENGTH)` int64, one table look-up per word."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        ids = {w: tokenizer(w, add_special_tokens=False).input_ids for w in VOCABULARY}
        split = [word for word, tokens in ids.items() if len(tokens) != 1]
        if split:
            raise ValueError(f"words that are not one token: {split}")
        self.words = {word: tokens[0] for word, tokens in ids.items()}
        self.start, self.end = tokenizer.get_vocab()[START], tokenizer.get_vocab()[END]

    def __call__(self, captions: list[str]) -> Tensor:
        ids = torch.full((len(captions), CONTEXT_LENGTH), self.end)
        ids[:, 0] = self.start
        for row, text in enumerate(captions):
            words = [self.words[word] for word in text.split()]
            ids[row, 1 : 1 + len(words)] = torch.tensor(words, dtype=torch.long)
        return ids
