"""The world's own CLIP tokenizer: byte-pair merges under which every caption word is one token."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from steer.shapes.captions import VOCABULARY


CONTEXT_LENGTH = 20
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the merges from the vocabulary, write the tokenizer to `folder` and load it.

    Letters, digits and common punctuation are tokens too, so that any prompt can be encoded. The
    end token has the highest id: OpenAI-style text towers pool there.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(sorted(VOCABULARY), trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    alphabet = string.ascii_lowercase + string.digits + ".,:;!?'\"()-&/"
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m.split()) for m in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
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
