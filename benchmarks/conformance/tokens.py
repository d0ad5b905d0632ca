"""Tokenizers of bytes, in place of those that diffusers' tests download."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors


SPECIAL = (
    *("<pad>", "</s>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"),
    *("<bos>", "<eos>", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "<mask>", "<image>"),
)
VISION = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
VISION_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat, as the Qwen models write it."""


def tokenizer(kind: Any, name: str, given: dict[str, Any]) -> Any:
    """A tokenizer in place of `kind.from_pretrained(name, **given)`."""
    auto = kind is transformers.AutoTokenizer
    if kind.__name__.startswith("CLIPTokenizer"):
        return clip_tokenizer()
    if auto and "clip" in name.lower() and "mclip" not in name:
        return clip_tokenizer()
    if kind.__name__.startswith("ChatGLM"):
        return _sentencepiece(kind)
    side = "left" if "Llama" in kind.__name__ else "right"
    return byte_tokenizer(padding_side=side, length=given.get("model_max_length", 512))


def clip_tokenizer() -> Any:
    """CLIP's tokenizer whose words are single letters."""
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp())
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def byte_tokenizer(
    pad: str = "<pad>", eos: str = "</s>", length: int = 512, padding_side: str = "right"
) -> Any:
    """One token per byte, after the special ones of T5, Llama, BERT and Qwen."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *_letters()])}
    core: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    if eos == "</s>":
        ending = [("</s>", vocabulary["</s>"])]
        core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=ending)
    made: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
        padding_side=padding_side,
    )
    made.chat_template = TEMPLATE
    for name, token in VISION.items():
        setattr(made, name, token)
    for name, token in VISION_IDS.items():
        setattr(made, name, vocabulary[token])
    made.vision_bos_token, made.vision_eos_token = "<|vision_start|>", "<|vision_end|>"
    return made


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _sentencepiece(kind: Any) -> Any:
    """ChatGLM's tokenizer on a vocabulary of two sentences."""
    import sentencepiece  # pyright: ignore[reportMissingImports]

    folder = Path(tempfile.mkdtemp())
    text = ["a painting of a squirrel eating a burger", "photo of red blue circles and a dog"]
    (folder / "text.txt").write_text("\n".join(text * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return kind(str(folder / "tokenizer.model"))
