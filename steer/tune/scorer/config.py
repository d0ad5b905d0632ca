"""How a preference scorer is fine-tuned; every number stands here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from steer.core.errors import TuneError
from steer.tune.settings import build, number, one_of, read_yaml, whole


_PLACE = ("out", "device")


@dataclass(frozen=True)
class RewardConfig:
    """A fine-tuning run of `steer tune reward`.

    The optimiser's defaults are HPS v2's (arXiv:2306.09341 and its repository: AdamW, learning
    rate 3.3e-6, weight decay 0.35, 500 warm-up steps, then cosine). It trained the last 20 groups
    of its ViT-H/14's image tower and the last 11 text layers: `unlocked_image: 20`,
    `unlocked_text: 11`.

    Attributes:
        out: The folder to make.
        model: What to start from, as the reward `clip:` takes it: `"ViT-B-32:laion2b_s34b_b79k"`,
            `"ViT-H-14:FILE"`, `"local-dir:FOLDER"`, `"hf-hub:NAME"`; or `"shapes-clip"`.
        data: Choices to learn from: a `.json`, `.jsonl` or `.parquet` file (see
            `steer.tune.reward.choices`); a folder of pairs that `steer tune data` made; or
            `{shapes: FOLDER}` for the bundled world's samples.
        held_out: Choices to measure on; without it `test_share` of the prompts of `data`.
        root: Folder that image paths are relative to; the file's own by default.
        test_share: See `held_out`.
        steps, batch: Of the optimiser; a batch counts prompts.
        lr, warmup, weight_decay, clip, ema, beta2: See `steer.tune.reward.loop.Optimisation`.
        smoothing: Share of every choice that is spread evenly over its images.
        unlocked_image, unlocked_text: Last groups and layers that are trained; None is all.
        checkpointing: Recompute activations in the backward pass, for large models.
        members: How many are trained, with different batches.
        soup: Average the members' weights with the starting model's (arXiv:2203.05482).
        resize: How images come to the model's size; `"model"` as it was trained.
        precision: Of the forward pass; weights stay in float32.
        store: Of the written weights.
        checkpoint_every: Steps.
        seed: Of the run.
        device: `"auto"` or a torch device.
    """

    out: str
    model: str
    data: Any
    held_out: Any = None
    root: str | None = None
    test_share: float = 0.1
    steps: int = 4000
    batch: int = 128
    lr: float = 3.3e-6
    warmup: int = 500
    weight_decay: float = 0.35
    clip: float = 1.0
    ema: float = 0.0
    beta2: float = 0.98
    smoothing: float = 0.0
    unlocked_image: int | None = None
    unlocked_text: int | None = None
    checkpointing: bool = False
    members: int = 1
    soup: bool = False
    resize: Literal["model", "shortest", "longest", "squash"] = "model"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    store: Literal["float16", "float32"] = "float16"
    checkpoint_every: int = 250
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "members", "checkpoint_every"):
            whole(name, getattr(self, name))
        for name in ("warmup", "seed"):
            whole(name, getattr(self, name), 0)
        for name in ("unlocked_image", "unlocked_text"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 0)
        for name in ("lr", "weight_decay", "clip"):
            number(name, getattr(self, name))
        for name in ("ema", "beta2", "smoothing", "test_share"):
            number(name, getattr(self, name), 0, 1 if name == "smoothing" else 0.99999)
        one_of("resize", self.resize, ("model", "shortest", "longest", "squash"))
        one_of("precision", self.precision, ("float32", "bfloat16"))
        one_of("store", self.store, ("float16", "float32"))
        if self.members > 1 and not self.soup:
            raise TuneError(f"members={self.members} without soup: true: only one can be written")
        if self.unlocked_image == 0 and self.unlocked_text == 0:
            raise TuneError("unlocked_image=0, unlocked_text=0: nothing is left to train")

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> RewardConfig:
        """From a YAML file; `given` values that are not None replace those in it.

        Raises:
            TuneError: A file that cannot be read, an unknown name, or a value out of range.
        """
        data = {**read_yaml(path), **{k: v for k, v in given.items() if v is not None}}
        return build(cls, data)

    def settings(self) -> dict[str, Any]:
        """All that decides the result, JSON-ready."""
        return {k: v for k, v in asdict(self).items() if k not in _PLACE}
