"""Random stand-ins for the encoders and processors that diffusers' tests download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessorMixin

from benchmarks.conformance import tokens


_TINY: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
Make = Callable[[Any, str, dict[str, Any]], Any]
"""Class, name of what would be downloaded, and arguments to the object in its place."""


def install() -> None:
    """Let `from_pretrained` of transformers build stand-ins; folders on disk load as before.

    For the rest of the process.
    """
    _replace(transformers.PreTrainedTokenizerBase, tokens.tokenizer)
    _replace(transformers.AutoTokenizer, tokens.tokenizer)
    _replace(transformers.AutoConfig, _config)
    _replace(transformers.PreTrainedModel, _model)
    _replace(ProcessorMixin, lambda kind, name, given: _processor(kind))
    _replace(
        transformers.AutoProcessor,
        lambda kind, name, given: _processor(transformers.Qwen2VLProcessor),
    )
    _replace(ImageProcessingMixin, _with_only("size"))
    _replace(FeatureExtractionMixin, _with_only("hop_length"))


def _replace(kind: Any, make: Make) -> None:
    own = kind.from_pretrained.__func__

    def from_pretrained(cls: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        named = isinstance(source, str | os.PathLike)
        if named and not Path(source).is_dir():
            return make(cls, str(source), kwargs)
        return own(cls, source, *args, **kwargs)

    kind.from_pretrained = classmethod(from_pretrained)


def _with_only(*names: str) -> Make:
    """A class of its defaults, but for these arguments."""
    return lambda kind, _, given: kind(**{name: given[name] for name in names if name in given})


def _config(_: Any, name: str, given: dict[str, Any]) -> Any:
    if "t5" not in name.lower():
        raise OSError(f"no stand-in for the configuration of {name}")
    return _t5(transformers.UMT5Config if "umt5" in name else transformers.T5Config)


def _model(kind: Any, name: str, given: dict[str, Any]) -> Any:
    made = _MODELS.get("Qwen3VL" if kind.__name__.startswith("Qwen3VL") else kind.__name__)
    if made is None:
        raise OSError(f"no stand-in for {kind.__name__} of {name}")
    torch.manual_seed(0)
    model = kind(made()).float().eval()
    if kind.__name__ == "ChatGLMModel":  # it leaves its weights as the memory was
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)
    return model


def _t5(kind: Any) -> Any:
    return kind(
        vocab_size=1103,
        d_model=32,
        d_ff=37,
        d_kv=8,
        num_heads=4,
        num_layers=5,
        num_decoder_layers=5,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        initializer_factor=0.002,
        is_encoder_decoder=True,
    )


def _bert() -> Any:
    size: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.BertConfig(vocab_size=1124, hidden_size=32, intermediate_size=37, **size)


def _llama() -> Any:
    size: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=64, num_key_value_heads=4, **size
    )


def _siglip() -> Any:
    size: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=37, image_size=30, patch_size=2, **size
    )


def _chatglm() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    known: Any = ChatGLMConfig
    known.original_rope = True
    return known(
        num_layers=2,
        padded_vocab_size=300,
        hidden_size=8,
        ffn_hidden_size=16,
        kv_channels=4,
        num_attention_heads=2,
        seq_length=256,
        original_rope=True,
    )


def _gemma3() -> Any:
    text: dict[str, Any] = {
        **_TINY,
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 64,
        "query_pre_attn_scalar": 8,
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    made: Any = transformers.Gemma3Config
    return made(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=8)


def _rope() -> dict[str, Any]:
    return {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}


def _qwen2vl() -> Any:
    text: dict[str, Any] = {
        **_TINY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "rope_scaling": _rope(),
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    made: Any = transformers.Qwen2VLConfig
    return made(text_config=text, vision_config={**vision, "patch_size": 14})


def _qwen3vl() -> Any:
    text: dict[str, Any] = {
        **_TINY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 152064,
        "rope_scaling": _rope(),
        "rope_theta": 1e6,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
    }
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, end, image, video = map(tokens.SPECIAL.index, names)
    made: Any = transformers.Qwen3VLConfig
    return made(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )


_MODELS: dict[str, Callable[[], Any]] = {
    "T5EncoderModel": lambda: _t5(transformers.T5Config),
    "UMT5EncoderModel": lambda: _t5(transformers.UMT5Config),
    "BertModel": _bert,
    "LlamaForCausalLM": _llama,
    "SiglipVisionModel": _siglip,
    "ChatGLMModel": _chatglm,
    "Gemma3ForConditionalGeneration": _gemma3,
    "Qwen2VLForConditionalGeneration": _qwen2vl,
    "Qwen3VL": _qwen3vl,
}
"""Tiny configurations by the class that is asked for."""


def _processor(kind: Any) -> Any:
    """A processor of pictures and text, put together without its files."""
    text = tokens.byte_tokenizer(eos="<|endoftext|>", pad="<|endoftext|>")
    side = 56 * 56
    made = kind.__new__(kind)
    made.image_processor = transformers.Qwen2VLImageProcessor(
        patch_size=14, temporal_patch_size=2, merge_size=2, min_pixels=side, max_pixels=4 * side
    )
    made.tokenizer, made.chat_template = text, tokens.TEMPLATE
    for name, value in tokens.VISION.items():
        setattr(made, name, value)
    for name in tokens.VISION_IDS:
        setattr(made, name, getattr(text, name))
    made.image_ids = made.video_ids = None
    try:
        made.video_processor = transformers.Qwen2VLVideoProcessor()
    except ImportError:  # it wants torchvision
        made.video_processor = None
    return made
