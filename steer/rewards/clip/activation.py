"""Which GELU a CLIP checkpoint was trained with, where the file or its folder tells."""

from __future__ import annotations

from pathlib import Path

from steer.core.weights.reading import load_state_dict, read_json
from steer.rewards.clip.layout import OPENAI_SIZES


def trained_with_quick_gelu(weights: str | Path) -> bool | None:
    """Whether weights were trained with QuickGELU; None where nothing tells.

    transformers says it in the `config.json` beside its weights (`hidden_act`, QuickGELU unless
    named), and OpenAI's own state dicts, which were, are known by the sizes that they hold.

    Raises:
        CheckpointError: A file that cannot be read.
    """
    beside = Path(weights).with_name("config.json")
    if beside.is_file():
        config = read_json(beside)
        if config.get("model_type") == "clip":
            tower = config.get("vision_config") or {}
            return tower.get("hidden_act", "quick_gelu") == "quick_gelu"
    return True if load_state_dict(weights).keys() >= OPENAI_SIZES else None
