"""Tiny random vision-language models of six kinds, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)


Values: TypeAlias = dict[str, Any]

WORDS = "Does this figure show a red blue circle square Please answer yes or no Yes No left of"
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
MARKS = ['"', "?", ".", ":", " ", "\n", "USER", "ASSISTANT"]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}{% if shout is defined %} No{% endif %}"
)
SMALL: Values = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2}
TEXT: Values = {
    **SMALL,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def tokenizer(kind: type[PreTrainedTokenizerFast] | None = None) -> PreTrainedTokenizerFast:
    """Words with and without a space in front are tokens of their own."""
    words = [*SPECIAL, *MARKS, *WORDS.split(), *[f" {word}" for word in WORDS.split()]]
    words += [" ASSISTANT"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    whole = Tokenizer(model)
    split = [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
    whole.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.Punctuation()])
    marks: Values = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    return (kind or PreTrainedTokenizerFast)(
        tokenizer_object=whole, additional_special_tokens=SPECIAL[4:], **marks
    )


def token(text: str) -> int:
    found = tokenizer().convert_tokens_to_ids(text)
    assert isinstance(found, int)
    return found


def llava() -> tuple[Any, Any]:
    """A chat template, absolute positions (GPT-2), images of a fixed size."""
    sizes: Values = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    vision: Values = {
        **SMALL,
        "model_type": "clip_vision_model",
        "image_size": 32,
        "patch_size": 16,
    }
    text: Values = {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 96,
    }
    text |= {"vocab_size": len(tokenizer()), "pad_token_id": 0, "bos_token_id": 2}
    text |= {"eos_token_id": 3, "tie_word_embeddings": False}
    tokens: Values = {
        "image_token_index": 4,
        "image_seq_length": 4,
        "tie_word_embeddings": False,
    }
    config = LlavaConfig(vision_config=vision, text_config=text, **tokens)
    processor = LlavaProcessor(
        CLIPImageProcessor(**sizes),
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def _qwen(patch: int = 8, **images: Any) -> tuple[Values, Values, list[Any]]:
    """Text settings, token ids and the parts of a processor that Qwen's models share."""
    pixels: Values = {"min_pixels": 16 * 16, "max_pixels": 64 * 64}
    patches: Values = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    rope: Values = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text: Values = {**TEXT, "vocab_size": len(tokenizer()), "rope_parameters": rope}
    text["rope_scaling"] = rope  # its name in transformers 4
    marks: Values = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    old = transformers.__version__.startswith("4.")  # which takes no other class
    words = tokenizer(transformers.Qwen2TokenizerFast if old else None)
    videos = Qwen3VLVideoProcessor if images else Qwen2VLVideoProcessor
    parts = [Qwen2VLImageProcessor(**pixels, **patches, **images), words, videos(**patches)]
    return text, marks, parts


QWEN_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_vl() -> tuple[Any, Any]:
    """A chat template, rotary positions in three axes, image tokens by the image's size."""
    text, marks, parts = _qwen()
    vision: Values = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    vision |= {"mlp_ratio": 2, "patch_size": 8, "temporal_patch_size": 2, "spatial_merge_size": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **marks)
    processor = Qwen2VLProcessor(*parts, chat_template=QWEN_TEMPLATE)
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """As Qwen2-VL, with attention in windows in the vision tower."""
    text, marks, parts = _qwen()
    vision: Values = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "patch_size": 8, "window_size": 32}
    vision |= {"fullatt_block_indexes": [1], "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **marks)
    processor = Qwen2_5_VLProcessor(*parts, chat_template=QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """As Qwen2-VL, with another normalisation, and features of several depths of the tower."""
    half: Values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    text, marks, parts = _qwen(**half)
    vision: Values = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "patch_size": 8, "spatial_merge_size": 2}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text |= {"head_dim": 16}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **marks)
    processor = Qwen3VLProcessor(*parts, chat_template=QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """No chat template, prompt tokens that see each other both ways."""
    vision: Values = {
        **SMALL,
        "model_type": "siglip_vision_model",
        "image_size": 32,
        "patch_size": 16,
    }
    vision |= {"projection_dim": 32, "vision_use_head": False}
    text: Values = {
        **TEXT,
        "model_type": "gemma",
        "head_dim": 16,
        "vocab_size": len(tokenizer()) + 200,
    }
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=4, projection_dim=32
    )
    images: Any = SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 4
    old = transformers.__version__.startswith("4.")  # which takes no other class
    words = tokenizer(transformers.GemmaTokenizerFast if old else None)
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, words)


def blip2() -> tuple[Any, Any]:
    """No chat template, an encoder-decoder (T5)."""
    vision: Values = {**SMALL, "image_size": 32, "patch_size": 16}
    bridge: Values = {
        **SMALL,
        "encoder_hidden_size": 32,
        "vocab_size": 30,
        "num_hidden_layers": 1,
    }
    text: Values = {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
    }
    text |= {"num_heads": 2, "vocab_size": len(tokenizer()), "decoder_start_token_id": 0}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=bridge,
        text_config=text,
        num_query_tokens=4,
        image_token_index=4,
    )
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = Blip2Processor(images, tokenizer(), num_query_tokens=4)
    return Blip2ForConditionalGeneration(config), processor


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "paligemma": paligemma,
    "blip2": blip2,
}


def save(kind: str, folder: Path) -> Path:
    """A model whose answers depend on image and question."""
    torch.manual_seed(0)
    model, processor = KINDS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
