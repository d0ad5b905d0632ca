"""A tiny Qwen2-VL with a head in the published layout, and its scores restated one by one.

The restatement uses transformers' own classes: its image processor, its vision tower, its language
model, and positions that are counted, as the authors' forward passes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import vlm_models
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration


VISION: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    **vlm_models.SMALL,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
}
CONFIG = {"vision": VISION, "text": TEXT}


class Reference:
    """The model, in float32.

    Args:
        marks: Special tokens that are added to the vocabulary.
        head: On a width of 32.
    """

    def __init__(self, marks: Sequence[str], head: nn.Module) -> None:
        torch.manual_seed(0)
        self.tokenizer = vlm_models.tokenizer()
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        self.marks = self.tokenizer.convert_tokens_to_ids(list(marks))
        text = {**TEXT, "vocab_size": len(self.tokenizer), "rope_scaling": TEXT["rope_parameters"]}
        ids = {f"{k}_token_id": vlm_models.token(f"<|{k}_pad|>") for k in ("image", "video")}
        config = Qwen2VLConfig(vision_config=VISION, text_config=text, **ids)
        self.model = Qwen2VLForConditionalGeneration(config).eval()
        self.head = head.eval()
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()  # whatever was drawn before
        with torch.no_grad():
            for parameter in (*self.model.parameters(), *head.parameters()):
                parameter.add_(0.2 * torch.randn_like(parameter))

    def state(self, prefix: str = "rm_head.") -> dict[str, Tensor]:
        """Tensors under the names of transformers 4.45, in which the files are published."""
        found = {f"{prefix}{name}": tensor for name, tensor in self.head.state_dict().items()}
        for name, tensor in self.model.state_dict().items():
            name = name.replace("model.visual.", "visual.")
            found[name.replace("model.language_model.", "model.")] = tensor
        return found

    def save_tokenizer(self, folder: Path) -> Path:
        """The tokenizer without the marks, as Qwen publishes it."""
        path = folder / "tokenizer.json"
        vlm_models.tokenizer().backend_tokenizer.save(str(path))
        return path

    def score(self, pixels: Tensor, grid: Tensor, text: str, kind: str) -> Tensor:
        """`(marks, outputs)` of one image or video.

        Args:
            pixels: Patches, from transformers' own processor.
            grid: `(1, 3)`.
            text: What follows the image.
            kind: `"image"` or `"video"`.
        """
        pad = f"<|{kind}_pad|>" * (int(grid.prod()) // 4)
        whole = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{pad}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([self.tokenizer(whole, add_special_tokens=False).input_ids])
        inner: Any = self.model.model
        seen = inner.visual(pixels, grid_thw=grid)
        seen = getattr(seen, "pooler_output", seen)
        given = inner.language_model.embed_tokens(ids)
        given[ids == vlm_models.token(f"<|{kind}_pad|>")] = seen
        places = torch.arange(ids.shape[1]).expand(3, 1, -1)
        hidden = inner.language_model(inputs_embeds=given, position_ids=places).last_hidden_state
        return torch.cat([self.head(hidden[ids == mark]) for mark in self.marks])
