"""What `steer tune run` is asked to do: a YAML file as frozen settings, checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from steer.core.errors import TuneError
from steer.core.settings import Settings, Several, build, read_yaml
from steer.tune.goal import Objective
from steer.tune.goals import GOALS, Labelled
from steer.tune.rounds_config import RoundsConfig, check_rounds
from steer.tune.sampled_goals import SAMPLED
from steer.tune.sampling_config import SamplingConfig, check_sampling


Dtype = Literal["float32", "float16", "bfloat16"]
Targets = Literal["winners"]
OBJECTIVES: dict[str, type[Objective]] = {**GOALS, **SAMPLED}


class LoraConfig(Settings):
    """Low-rank adapters (arXiv:2106.09685) through peft.

    Attributes:
        rank: Of the update.
        alpha: The update is scaled by alpha / rank; default the rank.
        targets: Module name endings; default the attention projections.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: Several[str] = ("to_q", "to_k", "to_v", "to_out.0")

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets:
            raise ValueError("lora.targets: name at least one module, such as to_q")
        return targets


class ValidationConfig(Settings):
    """What is looked at on the way.

    Attributes:
        every: Steps between two looks (also before the first step and after the last); 0 is never.
        prompts: What the grid draws; without prompts there is no grid.
        steps, guidance_scale: Of these images; the pipeline's own where left out.
        seed: Of these images.
        rows: Images (or pairs) of the split "test" whose loss is measured, at fixed noise.
    """

    every: int = Field(default=0, ge=0)
    prompts: Several[str] = ()
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    seed: int = Field(default=0, ge=0)
    rows: int = Field(default=64, ge=0)


def goal(value: Any) -> Objective:
    """An objective from its name, or from `{name: tgo, beta: 1.0, ...}`.

    Raises:
        TuneError: An unknown name, a parameter that is unknown or out of range.
    """
    if isinstance(value, Objective):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "name" not in given:
        raise TuneError(
            f"objective={value!r}: a name ({', '.join(OBJECTIVES)}), or a name and values"
        )
    name = given["name"]
    if name not in OBJECTIVES:
        raise TuneError(f"objective={name!r}: one of {', '.join(OBJECTIVES)}")
    rest = {k: v for k, v in given.items() if k != "name"}
    return build(OBJECTIVES[name], rest, TuneError, "objective")


def _adapters(value: Any) -> Any:
    """`true` is the default adapters, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


class TuneConfig(Settings):
    """A training run: equal configurations on equal data give equal weights.

    Attributes:
        data: The dataset's folder; not with `rounds`, which make their own, and with `sampling` for
            reward gradients that use real images.
        out: Where checkpoints, log, grids and the tuned weights go.
        objective: What is optimised, with its parameters.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        steps: Updates; with `rounds`, count x updates of theirs.
        batch: Images (or pairs) per update, over all processes.
        accumulate: Parts in which a process computes its share of the batch.
        lr, warmup, schedule: Learning rate; linear warm-up; then `constant`, `linear` or `cosine`.
        weight_decay, betas, clip: Of AdamW; the largest gradient norm (0: no clipping).
        lora: Adapters, or None to train the whole denoiser.
        ema: Decay of the average of the weights that is exported; 0 exports the weights themselves.
        siblings: Images of one prompt that stand together in a batch and share noise and timestep,
            as a pair's two do; for objectives of single images, a divisor of `batch`.
        text_dropout: Share of rows that are trained on the empty prompt, for CFG.
        targets: `winners`: what a search found is good and plain samples are not, whatever their
            scores; None leaves that to the objective.
        noise_range: Which part of the timesteps is trained, as shares: (0.4, 1.0) are the noisiest
            60%; None trains all.
        guidance_scale: The loss is of the guided prediction u + guidance_scale (c - u), of policy
            and reference alike, with u from the empty (or negative) prompt of the dataset's calls;
            None takes c alone.
        guided_branch: What of it is trained: `both` (the default), or `conditional` (c alone).
        dtype: What the denoiser computes in: `float32`, or `float16` or `bfloat16` by autocast;
            trained weights are float32 in any case.
        base_dtype: Of the frozen weights under adapters, likewise.
        gradient_checkpointing: Less memory for a second forward pass.
        timestep_scale: Of denoisers that steer does not know; see docs/tune.md.
        checkpoint_every, keep: Steps between checkpoints; how many are kept.
        seed: Of the order, the noise, the timesteps and the adapters' start.
        cpu: Do not use an accelerator.
        validation: What is looked at on the way.
        rounds: Sample, score, train, and again, instead of training on `data`.
        sampling: The runs of objectives that sample while they train.
    """

    data: str = ""
    out: str
    objective: Annotated[Objective, BeforeValidator(goal)]
    pipeline: str = "shapes"
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-5, gt=0)
    warmup: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    clip: float = Field(default=1.0, ge=0)
    lora: Annotated[LoraConfig | None, BeforeValidator(_adapters)] = LoraConfig()
    ema: float = Field(default=0.0, ge=0, lt=1)
    siblings: int = Field(default=1, ge=1)
    targets: Targets | None = None
    text_dropout: float = Field(default=0.0, ge=0, le=1)
    noise_range: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    guidance_scale: float | None = None
    guided_branch: Literal["both", "conditional"] | None = None
    dtype: Dtype = "float32"
    base_dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    timestep_scale: float | None = None
    checkpoint_every: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)
    cpu: bool = False
    validation: ValidationConfig = ValidationConfig()
    rounds: RoundsConfig | None = None
    sampling: SamplingConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_steps(cls, data: Any) -> Any:
        """The rounds' updates as `steps`."""
        rounds = data.get("rounds") if isinstance(data, Mapping) else None
        given = rounds.model_dump() if isinstance(rounds, RoundsConfig) else rounds
        if not isinstance(given, Mapping):
            return data
        count, updates = given.get("count"), given.get("updates")
        if not isinstance(count, int) or not isinstance(updates, int) or min(count, updates) < 1:
            return data  # the field's own checks name it
        steps = count * updates
        if data.get("steps", steps) != steps:
            raise ValueError(
                f"steps={data['steps']!r} with rounds: these make count x updates = {count} x "
                f"{updates} = {steps} updates; leave steps out"
            )
        return {**data, "steps": steps}

    @model_validator(mode="after")
    def _check_data(self) -> TuneConfig:
        own = {
            "rounds": self.rounds is not None,
            "siblings": self.siblings > 1,
            "text_dropout": self.text_dropout > 0,
            "noise_range": self.noise_range is not None,
        }
        check_sampling(self.sampling, self.objective, self.batch, self.data, own)
        if self.rounds is None and self.sampling is None and not self.data:
            raise ValueError("'data' is missing: add a line 'data: ...' (or rounds)")
        if self.rounds is not None and self.data:
            raise ValueError(
                f"data={self.data!r} with rounds: rounds draw their own samples; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_rounds(self) -> TuneConfig:
        if self.rounds is not None:
            check_rounds(self.rounds, self.objective, self.guidance_scale, self.text_dropout)
        return self

    @model_validator(mode="after")
    def _check_base(self) -> TuneConfig:
        if self.base_dtype != "float32" and self.lora is None:
            raise ValueError(
                f"base_dtype={self.base_dtype!r} with lora: false: the whole denoiser is trained "
                "in float32; use dtype: bfloat16 to save time and memory"
            )
        return self

    @model_validator(mode="after")
    def _check_siblings(self) -> TuneConfig:
        if self.siblings == 1:
            return self
        if self.objective.pairs or getattr(self.objective, "positive_share", None) is not None:
            raise ValueError(
                f"siblings={self.siblings}: is for objectives of single images without "
                "positive_share; pairs share their noise already"
            )
        if self.batch % self.siblings:
            raise ValueError(
                f"siblings={self.siblings}: must divide batch={self.batch} into whole groups"
            )
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> TuneConfig:
        if self.targets is not None and not isinstance(self.objective, Labelled):
            raise ValueError(
                f"targets={self.targets!r} with objective={self.objective.name!r}: is for "
                "objectives that label images (sft, csft, tgo, kto); for pairs of found and plain "
                "samples make the data with pairs: {choose: winners}"
            )
        return self

    @field_validator("noise_range")
    @classmethod
    def _check_noise_range(cls, given: tuple[float, float] | None) -> tuple[float, float] | None:
        if given is not None and not 0 <= given[0] < given[1] <= 1:
            raise ValueError(
                f"noise_range={list(given)!r}: two shares in [0, 1], the smaller first; the "
                "noisiest 60% are [0.4, 1.0]"
            )
        return given

    @model_validator(mode="after")
    def _check_guidance(self) -> TuneConfig:
        scale = self.guidance_scale
        if scale is None and self.guided_branch is not None:
            raise ValueError(
                f"guided_branch={self.guided_branch!r} without guidance_scale: there is one branch "
                "only; add the guidance_scale that images are sampled with"
            )
        if scale is not None and scale <= 1:
            raise ValueError(
                f"guidance_scale={scale:g}: pipelines guide above 1 only, and at 1 the guided "
                "prediction is the conditional one at twice the price; leave the line out"
            )
        if scale is not None and self.text_dropout:
            raise ValueError(
                f"text_dropout={self.text_dropout!r} with guidance_scale={scale!r}: the loss has "
                "the empty prompt in every row already; set text_dropout: 0"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> TuneConfig:
        """The configuration in a YAML file, with `given` values in place of the file's.

        Raises:
            TuneError: The file cannot be read, or something in it is wrong.
        """
        return cls.from_dict({**read_yaml(path, TuneError), **given})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TuneConfig:
        """The configuration of plain values, as `to_dict` gives and YAML holds.

        Raises:
            TuneError: A name that is unknown or missing, a value of the wrong kind or size.
        """
        return build(cls, values, TuneError)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        objective = {"name": self.objective.name, **self.objective.model_dump()}
        return {**self.model_dump(exclude={"objective"}), "objective": objective}
