"""What a preference set is made of; everything that decides its content stands here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steer.core.errors import TuneError
from steer.core.settings import Settings, Several, build, read_yaml
from steer.methods.text import is_bare, method_class, parse_method
from steer.shapes.worlds import NAMES, STEPS


_PLACE = ("out", "device", "samples")
_LABELS = ("pairs", "balance")

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Margin = Annotated[float, Field(ge=0)]


class SearchConfig(Settings):
    """How samples are searched for, in place of plain calls.

    Attributes:
        method: As `--method` has it: `"Prune"`, `"BestOfN(8)"`, or a name with its arguments
            below it; None leaves the choice to `compute`.
        compute: Plain calls' worth of it; with a bare name, or alone.
        plain: Also draw the plain sample of every seed, as a counterpart.
    """

    method: str | Mapping[str, Any] | None = None
    compute: float | None = Field(default=None, ge=1)
    plain: bool = False

    @model_validator(mode="after")
    def _check_method(self) -> SearchConfig:
        if self.method is None and self.compute is None:
            raise ValueError("search: name a method, such as BestOfN(4), or a compute, such as 4")
        self.effort()
        return self

    def effort(self) -> dict[str, Any]:
        """The arguments `method` and `compute` of `guided`."""
        if self.method is None:
            return {"compute": self.compute}
        if isinstance(self.method, str) and is_bare(self.method):
            return {"method": method_class(self.method), "compute": self.compute}
        if self.compute is not None:
            raise ValueError(
                f"search.compute={self.compute:g} beside method={self.method!r}: the method sets "
                "its own cost; give one"
            )
        return {"method": parse_method(self.method)}


class PairConfig(Settings):
    """How samples of one prompt become pairs.

    Attributes:
        per_prompt: Most pairs of a prompt; None keeps all.
        choose: Which ones: the `"widest"` margins, `"random"` ones, or `"winners"`: the widest of
            those where what a search found beats a plain sample.
        margin: Smallest difference of scores: a number for the main reward, or one by reward.
        unit: Of `margin`: `"raw"` scores, or the `"spread"` of each reward within a prompt.
        consensus: Keep a pair only where every reward prefers the same image; `"majority"`: the
            winner is what more rewards prefer (BalancedDPO, arXiv:2503.12575), and the pair's
            margin the share for it minus the share against; false: the main reward alone decides.
        count: How many pairs in all, drawn from those found; None keeps all.
        diversity: Choose these by margin and by how unlike the prompts are (after FiFA,
            arXiv:2410.10166): the weight of a prompt's log-distance from those that are kept,
            beside margins in standard deviations; None draws at random.
        seed: Of every draw above.
    """

    per_prompt: Count | None = 1
    choose: Literal["widest", "random", "winners"] = "widest"
    margin: Margin | Mapping[str, Margin] = 0.0
    unit: Literal["raw", "spread"] = "raw"
    consensus: bool | Literal["majority"] = True
    count: Count | None = None
    diversity: float | None = Field(default=None, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_diversity(self) -> PairConfig:
        if self.diversity is not None and self.count is None:
            raise ValueError(
                f"pairs.diversity={self.diversity:g} without count: it chooses some of the pairs; "
                "say how many"
            )
        return self


def check_pairs(pairs: PairConfig, per_prompt: int, search: SearchConfig | None) -> None:
    """Raise ValueError where no prompt can have a pair."""
    plain = search is not None and search.plain
    if per_prompt < 2 and not plain:
        raise ValueError(
            f"{per_prompt} sample of every prompt with pairs: a pair needs two samples of a prompt"
        )
    if pairs.choose == "winners" and not plain:
        raise ValueError(
            "pairs.choose='winners': needs samples of a search and plain ones; add search: "
            "{compute: 4, plain: true}"
        )


class DataConfig(Settings):
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
        search: How samples are searched for; None makes plain calls.
        batch: Samples per pipeline call.
        shard: Samples per file, and per step that an interruption can lose; whole prompts.
        stored_dtype: Of the stored latents and text features.
        dtype: What the pipeline computes in; `"auto"` as for `steer sample`.
        compile: `torch.compile` the denoiser: a minute or two of compiling, faster steps after.
        device: `"auto"` or a torch device.
        test_share: Share of prompts that are kept for validation (`split` is `"test"`).
        balance: Keep as many pairs (without pairs: prompts) of every category.
        pairs: Makes a paired set; None makes a scored one.
        samples: A finished folder whose samples are taken as they are; only `pairs`, `balance`
            and `out` are then of this configuration.
    """

    out: str
    prompts: Any = None
    pipeline: str = "shapes"
    rewards: Several[str] = ("shapes",)
    seeds: Count | Several[Seed] = 4
    seed: Seed = 0
    steps: Count | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    call: Mapping[str, Any] = Field(default_factory=dict)
    search: SearchConfig | None = None
    batch: Count = 16
    shard: Count = 512
    stored_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    compile: bool = False
    device: str = "auto"
    test_share: float = Field(default=0.05, ge=0, le=0.99)
    balance: bool = False
    pairs: PairConfig | None = None
    samples: str | None = None

    @field_validator("rewards", mode="before")
    @classmethod
    def _several(cls, rewards: Any) -> Any:
        return (rewards,) if isinstance(rewards, str) else rewards

    @field_validator("rewards")
    @classmethod
    def _check_rewards(cls, rewards: tuple[str, ...]) -> tuple[str, ...]:
        if not rewards or len(set(rewards)) != len(rewards):
            raise ValueError(f"rewards={list(rewards)!r}: name at least one, each once")
        return rewards

    @model_validator(mode="after")
    def _check_seeds(self) -> DataConfig:
        if not isinstance(self.seeds, int) and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)!r}: each once, equal ones draw one image")
        if self.pairs is not None and self.samples is None:
            check_pairs(self.pairs, self.per_prompt, self.search)
        return self

    @model_validator(mode="after")
    def _check_prompts(self) -> DataConfig:
        if self.samples is None and self.prompts is None:
            raise ValueError("'prompts' is missing: name a file, a list, or {shapes: train, ...}")
        return self

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> DataConfig:
        """From a YAML file; `given` values that are not None replace those in it.

        Raises:
            TuneError: A file that cannot be read, an unknown name, or a value out of range.
        """
        data = read_yaml(path, TuneError) | {k: v for k, v in given.items() if v is not None}
        return build(cls, data, TuneError)

    @property
    def per_prompt(self) -> int:
        """Samples per prompt."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    def sampling(self) -> dict[str, Any]:
        """The settings that decide which samples there are, JSON-ready."""
        return {k: v for k, v in self.model_dump().items() if k not in (*_PLACE, *_LABELS)}

    def labelling(self) -> dict[str, Any]:
        """The settings that decide how samples are labelled, JSON-ready."""
        return {k: v for k, v in self.model_dump().items() if k in _LABELS}

    def arguments(self) -> dict[str, Any]:
        """The pipeline call's own, but for prompts and generators."""
        world = NAMES.get(self.pipeline)
        steps = self.steps or (STEPS[world] if world else None)
        given = {
            "num_inference_steps": steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt or None,
        }
        return {**{k: v for k, v in given.items() if v is not None}, **self.call}
