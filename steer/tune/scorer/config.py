"""How a preference scorer is fine-tuned; every number stands here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from steer.core.errors import TuneError
from steer.core.settings import Settings, build, read_yaml


_PLACE = ("out", "device")


class ScorerConfig(Settings):
    """A fine-tuning run of `steer tune scorer`.

    The optimiser's defaults are HPS v2's (arXiv:2306.09341 and its repository: AdamW, learning
    rate 3.3e-6, weight decay 0.35, 500 warm-up steps, then cosine). It trained the last 20 groups
    of its ViT-H/14's image tower and the last 11 text layers: `unlocked_image: 20`,
    `unlocked_text: 11`.

    Attributes:
        out: The folder to make.
        model: What to start from, as the reward `clip:` takes it: `"ViT-B-32:laion2b_s34b_b79k"`,
            `"ViT-H-14:FILE"`, `"local-dir:FOLDER"`, `"hf-hub:NAME"`; or `"shapes-clip"`.
        data: Choices to learn from: a `.json`, `.jsonl` or `.parquet` file (see
            `steer.tune.scorer.choices`), or a folder of pairs that `steer tune data` made.
        held_out: Choices to measure on; without it `test_share` of the prompts of `data`.
        root: Folder that image paths are relative to; the file's own by default.
        test_share: See `held_out`.
        steps, batch: Of the optimiser; a batch counts prompts.
        lr, warmup, weight_decay, clip, ema, beta2: See `steer.tune.scorer.loop.Optimisation`.
        smoothing: Share of every choice that is spread evenly over its images.
        unlocked_image, unlocked_text: Last groups and layers that are trained; None is all.
        checkpointing: Recompute activations in the backward pass, for large models.
        resize: How images come to the model's size; `"model"` as it was trained.
        dtype: What the model computes in, by autocast; trained weights are float32 in any case.
        stored_dtype: Of the written weights.
        checkpoint_every: Steps.
        seed: Of the run.
        device: `"auto"` or a torch device.
    """

    out: str
    model: str
    data: str
    held_out: str | None = None
    root: str | None = None
    test_share: float = Field(default=0.1, ge=0, lt=1)
    steps: int = Field(default=4000, ge=1)
    batch: int = Field(default=128, ge=1)
    lr: float = Field(default=3.3e-6, ge=0)
    warmup: int = Field(default=500, ge=0)
    weight_decay: float = Field(default=0.35, ge=0)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    smoothing: float = Field(default=0.0, ge=0, le=1)
    unlocked_image: int | None = Field(default=None, ge=0)
    unlocked_text: int | None = Field(default=None, ge=0)
    checkpointing: bool = False
    resize: Literal["model", "shortest", "longest", "squash"] = "model"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    stored_dtype: Literal["float16", "float32"] = "float16"
    checkpoint_every: int = Field(default=250, ge=1)
    seed: int = Field(default=0, ge=0)
    device: str = "auto"

    @model_validator(mode="after")
    def _check_unlocked(self) -> ScorerConfig:
        if self.unlocked_image == 0 and self.unlocked_text == 0:
            raise ValueError("unlocked_image=0, unlocked_text=0: nothing is left to train")
        return self

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> ScorerConfig:
        """From a YAML file; `given` values that are not None replace those in it.

        Raises:
            TuneError: A file that cannot be read, an unknown name, or a value out of range.
        """
        data = read_yaml(path, TuneError) | {k: v for k, v in given.items() if v is not None}
        return build(cls, data, TuneError)

    def settings(self) -> dict[str, Any]:
        """All that decides the result, JSON-ready."""
        return {k: v for k, v in self.model_dump().items() if k not in _PLACE}
