"""What a preference set is made of; everything that decides its content stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from steer.core.errors import TuneError
from steer.tune.settings import build, number, one_of, read_yaml, whole


_PLACE = ("out", "device", "samples")
_LABELS = ("pairs", "scores", "balance")
_SHAPES_STEPS = 20


@dataclass(frozen=True)
class PairConfig:
    """How samples of one prompt become pairs.

    Attributes:
        per_prompt: Most pairs of a prompt; None keeps all.
        choose: Which ones: the `"widest"` margins, or `"random"` ones.
        margin: Smallest difference of scores: a number for the main reward, or one by reward.
        unit: Of `margin`: `"raw"` scores, or the `"spread"` of each reward within a prompt.
        consensus: Keep a pair only where every reward prefers the same image.
        count: How many pairs in all, drawn from those found; None keeps all.
        noise: Share of pairs whose winner and loser are deliberately swapped.
        seed: Of every draw above.
    """

    per_prompt: int | None = 1
    choose: Literal["widest", "random"] = "widest"
    margin: float | Mapping[str, float] = 0.0
    unit: Literal["raw", "spread"] = "raw"
    consensus: bool = True
    count: int | None = None
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("per_prompt", "count"):
            if getattr(self, name) is not None:
                whole(f"pairs: {name}", getattr(self, name))
        one_of("pairs: choose", self.choose, ("widest", "random"))
        one_of("pairs: unit", self.unit, ("raw", "spread"))
        margins = self.margin if isinstance(self.margin, Mapping) else {"margin": self.margin}
        for name, value in margins.items():
            number(f"pairs: {name}", value)
        number("pairs: noise", self.noise, 0, 1)
        whole("pairs: seed", self.seed, 0)


@dataclass(frozen=True)
class ScoreConfig:
    """What is done to scalar scores.

    Attributes:
        noise: Share of images whose score is deliberately reflected about the median of all
            scores: good ones are then called bad, as surely as they were good.
        seed: Of that draw.
    """

    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        number("scores: noise", self.noise, 0, 1)
        whole("scores: seed", self.seed, 0)


@dataclass(frozen=True)
class DataConfig:
    """A preference set: whose samples, of which prompts, scored by what, labelled how.

    Attributes:
        out: The folder to make.
        prompts: A list of texts; a file (`.txt` one per line, `.json` list, `.jsonl`, `.csv` or
            `.tsv` with columns `prompt` and optionally `category`); or, for the bundled world,
            `{shapes: train, count: 2500, seed: 1}`.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        rewards: Names, or weights as in `"hpsv2=0.7,aesthetic=0.1"`; the first is the main one.
        seeds: Samples per prompt, or their seeds. A number n gives every prompt n seeds of its
            own, made from `seed`, its text and the sample's number.
        seed: Of the set.
        steps, guidance_scale: Of the pipeline's call; None is its own default.
        negative_prompt: For classifier-free guidance; empty is the pipeline's own.
        call: Further arguments of the pipeline, such as `height`.
        batch: Samples per pipeline call.
        shard: Samples per file, and per step that an interruption can lose; whole prompts.
        store: Precision of the stored latents and text features.
        precision: Precision that the pipeline runs in; `"auto"` as for `steer sample`.
        compile: `torch.compile` the denoiser: a minute or two of compiling, faster steps after.
        device: `"auto"` or a torch device.
        test_share: Share of prompts that are kept for validation (`split` is `"test"`).
        balance: Keep as many pairs (without pairs: prompts) of every category.
        pairs: Makes a paired set; None makes a scored one.
        scores: Deliberate noise on a scored set.
        samples: A finished folder whose samples are taken as they are; only `pairs`, `scores`,
            `balance` and `out` are then of this configuration.
    """

    out: str
    prompts: Any = None
    pipeline: str = "shapes"
    rewards: Sequence[str] = ("shapes",)
    seeds: int | Sequence[int] = 4
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    shard: int = 512
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"
    test_share: float = 0.05
    balance: bool = False
    pairs: PairConfig | None = None
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    samples: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str):
            object.__setattr__(self, "rewards", (self.rewards,))
        object.__setattr__(self, "rewards", tuple(self.rewards))
        if not self.rewards or len(set(self.rewards)) != len(self.rewards):
            raise TuneError(f"rewards={list(self.rewards)!r}: name at least one, each once")
        for name in ("batch", "shard"):
            whole(name, getattr(self, name))
        if self.steps is not None:
            whole("steps", self.steps)
        whole("seed", self.seed, 0)
        number("test_share", self.test_share, 0, 0.99)
        one_of("compile", self.compile, (False, True))
        one_of("store", self.store, ("float16", "bfloat16", "float32"))
        self._check_seeds()
        if self.pairs is not None and self.scores.noise:
            raise TuneError("scores: noise beside pairs: a paired set's noise is pairs: noise")
        if self.samples is None and self.prompts is None:
            raise TuneError("'prompts' is missing: name a file, a list, or {shapes: train, ...}")

    def _check_seeds(self) -> None:
        if not isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", tuple(self.seeds))
            for value in self.seeds:
                whole("seeds", value, 0)
            if len(set(self.seeds)) != len(self.seeds):
                raise TuneError(f"seeds={list(self.seeds)!r}: each once, equal ones draw one image")
        else:
            whole("seeds", self.seeds)
        if self.pairs is not None and self.samples is None and self.per_prompt < 2:
            raise TuneError(
                f"seeds={self.seeds!r} with pairs: a pair needs two samples of a prompt"
            )

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> DataConfig:
        """From a YAML file; `given` values that are not None replace those in it.

        Raises:
            TuneError: A file that cannot be read, an unknown name, or a value out of range.
        """
        data = {**read_yaml(path), **{k: v for k, v in given.items() if v is not None}}
        for name, cls_ in (("pairs", PairConfig), ("scores", ScoreConfig)):
            if data.get(name) is not None:
                data[name] = build(cls_, data[name], name)
            else:
                data.pop(name, None)
        return build(cls, data)

    @property
    def per_prompt(self) -> int:
        """Samples per prompt."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    def sampling(self) -> dict[str, Any]:
        """The settings that decide which samples there are, JSON-ready."""
        return {k: v for k, v in asdict(self).items() if k not in (*_PLACE, *_LABELS)}

    def labelling(self) -> dict[str, Any]:
        """The settings that decide how samples are labelled, JSON-ready."""
        return {k: v for k, v in asdict(self).items() if k in _LABELS}

    def arguments(self) -> dict[str, Any]:
        """The pipeline call's own, but for prompts and generators."""
        steps = self.steps or (_SHAPES_STEPS if self.pipeline == "shapes" else None)
        given = {
            "num_inference_steps": steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt or None,
        }
        return {**{k: v for k, v in given.items() if v is not None}, **self.call}
