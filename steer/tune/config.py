"""What `steer tune` is asked to do: a YAML file as frozen dataclasses, checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from steer.core.errors import TuneError
from steer.tune.goals import GOALS, Goal
from steer.tune.settings import build, read_yaml


SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("no", "fp16", "bf16")
WEIGHTS = ("float32", "float16", "bfloat16")
_CHOICES = {"schedule": SCHEDULES, "precision": PRECISIONS, "weights": WEIGHTS}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685) through peft.

    Attributes:
        rank: Of the update.
        alpha: The update is scaled by alpha / rank; default the rank.
        targets: Module name endings; default the attention projections.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        _positive(self, "lora.", "rank")
        if self.alpha is not None and not self.alpha > 0:
            raise TuneError(f"lora.alpha={self.alpha!r}: must be positive, or left out")
        if not self.targets:
            raise TuneError("lora.targets: name at least one module, such as to_q")


@dataclass(frozen=True)
class ValidationConfig:
    """What is looked at on the way.

    Attributes:
        every: Steps between two looks (also before the first step and after the last); 0 is never.
        prompts: What the grid draws; without prompts there is no grid.
        steps, guidance_scale: Of these images; the pipeline's own where left out.
        seed: Of these images.
        rows: Images (or pairs) of the split "test" whose loss is measured, at fixed noise.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    rows: int = 64

    def __post_init__(self) -> None:
        for name in ("every", "rows", "seed"):
            if getattr(self, name) < 0:
                raise TuneError(f"validation.{name}={getattr(self, name)!r}: must not be negative")


@dataclass(frozen=True)
class TuneConfig:
    """A training run: equal configurations on equal data give equal weights.

    Attributes:
        data: The dataset's folder.
        out: Where checkpoints, log, grids and the tuned weights go.
        objective: What is optimised, with its parameters.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        steps: Updates.
        batch: Images (or pairs) per update, over all processes.
        accumulate: Parts in which a process computes its share of the batch.
        lr, warmup, schedule: Learning rate; linear warm-up; then `constant`, `linear` or `cosine`.
        weight_decay, betas, clip: Of AdamW; the largest gradient norm (0: no clipping).
        lora: Adapters, or None to train the whole denoiser.
        ema: Decay of the average of the weights that is exported; 0 exports the weights themselves.
        siblings: Images of one prompt that stand together in a batch and share noise and timestep,
            as a pair's two do; for objectives of single images, a divisor of `batch`.
        text_dropout: Share of rows that are trained on the empty prompt, for CFG.
        precision: `no`, `fp16` or `bf16` autocast; trained weights are float32 in any case.
        weights: Type of the weights under adapters: `float32`, `float16` or `bfloat16`.
        gradient_checkpointing: Less memory for a second forward pass.
        timestep_scale: Of denoisers that steer does not know; see docs/tune.md.
        checkpoint_every, keep: Steps between checkpoints; how many are kept.
        seed: Of the order, the noise, the timesteps and the adapters' start.
        cpu: Do not use an accelerator.
        validation: What is looked at on the way.

    Raises:
        TuneError: A value out of range, an unknown name.
    """

    data: str
    out: str
    objective: Goal
    pipeline: str = "shapes"
    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    lr: float = 1e-5
    warmup: int = 0
    schedule: str = "constant"
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    ema: float = 0.0
    siblings: int = 1
    text_dropout: float = 0.0
    precision: str = "no"
    weights: str = "float32"
    gradient_checkpointing: bool = False
    timestep_scale: float | None = None
    checkpoint_every: int = 200
    keep: int = 2
    seed: int = 0
    cpu: bool = False
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        _positive(self, "", "steps", "batch", "accumulate", "checkpoint_every", "keep", "siblings")
        _within(self, "ema", 0, 1, open_end=True)
        _within(self, "text_dropout", 0, 1)
        if not (isinstance(self.lr, int | float) and 0 < self.lr < math.inf):
            raise TuneError(f"lr={self.lr!r}: must be a positive number, such as 1e-5")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise TuneError(f"{name}={getattr(self, name)!r}: one of {', '.join(known)}")
        if self.weights != "float32" and self.lora is None:
            raise TuneError(
                f"weights={self.weights!r} with lora: false: the whole denoiser is trained in "
                "float32; use precision: bf16 to save time and memory"
            )
        self._check_siblings()
        for name in ("warmup", "weight_decay", "clip", "seed"):
            if not getattr(self, name) >= 0:
                raise TuneError(f"{name}={getattr(self, name)!r}: must not be negative")

    def _check_siblings(self) -> None:
        if self.siblings == 1:
            return
        if self.objective.pairs or getattr(self.objective, "positive_share", None) is not None:
            raise TuneError(
                f"siblings={self.siblings}: is for objectives of single images without "
                "positive_share; pairs share their noise already"
            )
        if self.batch % self.siblings:
            raise TuneError(
                f"siblings={self.siblings}: must divide batch={self.batch} into whole groups"
            )

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> TuneConfig:
        """The configuration in a YAML file, with `given` values in place of the file's.

        Raises:
            TuneError: The file cannot be read, or something in it is wrong.
        """
        return cls.from_dict({**read_yaml(path), **given})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TuneConfig:
        """The configuration of plain values, as `to_dict` gives and YAML holds.

        Raises:
            TuneError: A name that is unknown or missing, a value of the wrong kind or size.
        """
        given = dict(values)
        lora = given.get("lora", {})
        if lora is not None and lora is not False:
            given["lora"] = _build(LoraConfig, {} if lora is True else lora, "lora")
        else:
            given["lora"] = None
        given["validation"] = _build(ValidationConfig, given.get("validation", {}), "validation")
        if "objective" in given:
            given["objective"] = goal(given["objective"])
        return _build(cls, given, "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        return {**asdict(self), "objective": {"name": self.objective.name} | asdict(self.objective)}


def goal(value: Any) -> Goal:
    """An objective from its name, or from `{name: tgo, beta: 1.0, ...}`."""
    if isinstance(value, Goal):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "name" not in given:
        raise TuneError(f"objective={value!r}: a name ({', '.join(GOALS)}), or a name and values")
    name = given["name"]
    if name not in GOALS:
        raise TuneError(f"objective={name!r}: one of {', '.join(GOALS)}")
    return _build(GOALS[name], {k: v for k, v in given.items() if k != "name"}, "objective")


def _build(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from plain values; lists become tuples, numbers written as text numbers."""
    if isinstance(values, kind):
        return values
    if isinstance(values, Mapping):
        known = {f.name: f for f in fields(kind)}
        values = {k: _plain(known[k], v, where) if k in known else v for k, v in values.items()}
    return build(kind, values, where)


def _plain(known: Any, value: Any, where: str) -> Any:
    kind = str(known.type)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and "float" in kind and "str" not in kind:  # YAML reads 1e-5 as text
        try:
            return float(value)
        except ValueError:
            pass
    wanted = {"int": int, "float": (int, float), "bool": bool, "str": str}.get(kind.split(" | ")[0])
    optional = value is None and "None" in kind
    boolean = isinstance(value, bool) and wanted is not bool
    if wanted and not optional and (boolean or not isinstance(value, wanted)):
        raise TuneError(f"{where and where + '.'}{known.name}={value!r}: must be {kind}")
    return value


def _positive(config: Any, where: str, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 1:
            raise TuneError(f"{where}{name}={getattr(config, name)!r}: must be at least 1")


def _within(config: Any, name: str, low: float, high: float, open_end: bool = False) -> None:
    value = getattr(config, name)
    if not low <= value <= high or (open_end and value == high):
        raise TuneError(f"{name}={value!r}: must be in [{low}, {high}{')' if open_end else ']'}")
