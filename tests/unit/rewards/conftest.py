"""Tiny random checkpoints of the real layouts."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import CLIPTokenizer

from steer.shapes.export import write_open_clip_folder


HPS_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 224,
        "layers": 2,
        "width": 40,
        "head_width": 20,
        "patch_size": 28,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = ["a", "red", "blue", "green", "small", "circle", "square", "left", "of", "two", "squares"]


def random_clip(config: dict, seed: int = 0) -> open_clip.CLIP:
    """A CLIP whose weights are large enough for the two towers' features to vary."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def hps_config() -> dict:
    return HPS_CONFIG


@pytest.fixture(scope="session")
def hps_model() -> open_clip.CLIP:
    return random_clip(HPS_CONFIG)


@pytest.fixture(scope="session")
def hps_file(hps_model: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: a pickled dict with the tensors under `state_dict`."""
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": hps_model.state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer by transformers, from the published list of merges."""
    folder = tmp_path_factory.mktemp("bpe")
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(packed, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *[x + "</w>" for x in letters], *["".join(m.split()) for m in merges]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _joined(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair merging: the earliest rule that applies goes first."""
    while True:
        pairs = list(itertools.pairwise(pieces))
        rule = next((m for m in merges if m in pairs), None)
        if rule is None:
            return pieces
        at = pairs.index(rule)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]


def word_tokenizer(folder: Path, words: list[str]) -> CLIPTokenizer:
    """A CLIPTokenizer in which every word is one token and the end token has the highest id."""
    letters = sorted({letter for word in words for letter in word})
    tokens, merges = ["<unk>", *letters, *[x + "</w>" for x in letters]], []
    for word in words:
        left, *rest = _joined([*word[:-1], word[-1] + "</w>"], merges)
        for piece in rest:
            merges.append((left, piece))
            left += piece
            if left not in tokens:
                tokens.append(left)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<unk>")


@pytest.fixture(scope="session")
def folder_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, open_clip.CLIP]:
    """A model folder of the bundled layout, and the model in it."""
    folder = tmp_path_factory.mktemp("bundled")
    tokenizer = word_tokenizer(folder / "vocabulary", WORDS)
    config = {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 64,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 24,
            "vocab_size": len(tokenizer),
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    model = random_clip(config, 1)
    preprocess = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    write_open_clip_folder(folder / "scorer", model, config, preprocess, tokenizer)
    return folder / "scorer", model
