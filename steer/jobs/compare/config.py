"""What a comparison is asked to do, and the YAML that says so.

The rule of a fair comparison stands here: all arms share steps, guidance scale and scheduler,
unless an arm says in `differs` that it does not. Rewards, methods and blends are written as on the
command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from steer.core.checks import near
from steer.core.errors import ComparisonError
from steer.core.settings import Settings, Several, build, read_yaml
from steer.jobs.call import OWN, check_call
from steer.jobs.reward_loader import reward_parts
from steer.shapes.worlds import NAMES


SHARED = ("steps", "guidance_scale", "scheduler")
"""What arms share unless they declare that they differ in it."""

AtLeast1 = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8)]


class Arm(Settings):
    """One way to draw the prompts. Without options it is the plain call.

    Attributes:
        name: Unique; also the name of its folder: letters, digits, and `. _ + -` within.
        tuned: A tuned checkpoint, as `steer.guided(tuned=...)` takes it.
        blend: How tuned and untuned are combined, as in `"RLG(2.0)"`.
        preview: What decodes previews, as `steer.guided(preview=...)` takes it.
        method: As `steer sample --method` takes it; None is chosen by `compute`.
        compute: Plain calls' worth of denoiser rows; None is 1, or the method's own.
        steps, guidance_scale, scheduler: Instead of the comparison's; only with `differs`.
        differs: Which of these three are meant to differ.
        label: For the page; default the name.
    """

    name: str
    tuned: str | None = None
    blend: str | None = None
    preview: str | None = None
    method: str | None = None
    compute: float | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    scheduler: str | None = None
    differs: Several[str] = ()
    label: str | None = None

    @field_validator("differs", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Arm:
        if not _is_name(self.name):
            raise ValueError(
                f"name={self.name!r}: letters, digits, and . _ + - within (it names a folder); "
                "use `label` for the page"
            )
        _refuse_empty(self, ("tuned", "blend", "preview", "method", "scheduler", "label"))
        odd = [key for key in self.differs if key not in SHARED]
        if odd:
            raise ValueError(f"differs={odd!r}: may name {', '.join(SHARED)}")
        if self.compute is not None and self.method is not None and not _is_bare(self.method):
            raise ValueError(
                f"compute={self.compute:g} with method={self.method!r}: a method written out has "
                "its own cost; leave one of them out"
            )
        return self


class Comparison(Settings):
    """Arms x prompts x seeds, and how they are judged. Equal comparisons give equal images.

    Attributes:
        arms: At least two, of different names.
        prompts: A set's name (`"shapes"`, `"hpsv2"`, `"hpsv2:photo"`, ...), a text file, a list of
            texts, or a mapping with `set` and its options; see `steer.jobs.compare.prompt_sets`.
        seeds: Noise seeds; prompt k with seed s is drawn from the same noise in every arm.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        reward: What the arms optimise: a name, or weights: `"hpsv2=0.7,aesthetic=0.3"`, or a
            mapping.
        scale: A file of scales that the optimised reward is put on; see `steer scale`.
        judges: Rewards that no arm optimises; for the shapes world also `"oracle"` (the share of
            the caption's constraints that are met) and `"oracle-all"` (1 where all are); `"auto"`
            becomes one of another family (`steer.rewards.judges`).
        steps, guidance_scale, scheduler: Of all arms; None is the pipeline's own. A scheduler is
            the name of a diffusers class, such as `"DDIMScheduler"`.
        size: Height and width of the images; None is the pipeline's own.
        call: Further arguments of the pipeline's calls, of all arms.
        baseline: The arm that the others are held against; default the first.
        diversity: Whose image features measure how different the seeds' images are: a reward with
            an image encoder (`"shapes-clip"`, `"clip:ViT-B-32:openai"`), or `"pixels"`.
        checkpoints: Local weights by reward name.
        device, dtype: As for `steer sample`.
        images_per_call: Images of an arm in one pipeline call. More is faster where one image's
            particles do not fill the device; each is then recorded with its share of the cost.
        lane_width: Particles per returned image in one denoiser call; None is chosen.
        show: Most prompts whose images stand on the page.
        title: Of the page.
    """

    arms: Several[Arm]
    prompts: Any = "shapes"
    seeds: Several[Annotated[int, Field(ge=0)]] = (0,)
    pipeline: str = "shapes"
    reward: str = "shapes"
    scale: str | None = None
    judges: Several[str] = ()
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    scheduler: str | None = None
    size: tuple[Pixels, Pixels] | None = None
    call: dict[str, Any] = Field(default_factory=dict)
    baseline: str = ""
    diversity: str = "pixels"
    checkpoints: dict[str, str] = Field(default_factory=dict)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    images_per_call: AtLeast1 = 1
    lane_width: int | None = Field(None, ge=1)
    show: int = Field(24, ge=0)
    title: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _first_is_baseline(cls, values: Any) -> Any:
        arms = values.get("arms") if isinstance(values, Mapping) else None
        if not arms or values.get("baseline") or not isinstance(arms[0], Arm):
            return values
        return {**values, "baseline": arms[0].name}

    @field_validator("seeds", mode="before")
    @classmethod
    def _how_many(cls, value: Any) -> Any:
        return tuple(range(value)) if type(value) is int else value

    @field_validator("reward", mode="before")
    @classmethod
    def _weights_as_text(cls, value: Any) -> Any:
        from steer.rewards.text import as_text

        return as_text(value) if isinstance(value, Mapping) else value

    @field_validator("judges", mode="before")
    @classmethod
    def _several_chosen(cls, value: Any, info: ValidationInfo) -> Any:
        judges = (value,) if isinstance(value, str) else value
        if (
            "reward" not in info.data
            or not isinstance(judges, list | tuple)
            or "auto" not in judges
        ):
            return judges
        from steer.rewards.judges import with_auto

        return tuple(with_auto(judges, info.data["reward"]))

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if type(value) is int else _pair(value)

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        self._check_names()
        keys = ("pipeline", "reward", "scale", "scheduler", "diversity", "device", "title")
        _refuse_empty(self, keys)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)!r}: at least one, each once; or how many")
        if len(set(self.judges)) < len(self.judges) or self.reward in self.judges:
            raise ValueError(
                f"judges={list(self.judges)!r} with reward={self.reward!r}: each once, and the "
                "optimised reward is reported anyway"
            )
        self._check_checkpoints()
        check_call(self.call, OWN | {"height": "write size", "width": "write size"})
        for arm in self.arms:
            _check_fair(self, arm)
        return self

    def _check_names(self) -> None:
        names = [arm.name for arm in self.arms]
        folders = [name.lower() for name in names]  # some disks ignore case
        if len(names) < 2:
            raise ValueError(f"arms={names!r}: a comparison needs two")
        twice = next((n for i, n in enumerate(names) if folders[i] in folders[:i]), None)
        if twice is not None:
            raise ValueError(f"arms: the name {twice!r} stands there twice; give each its own")
        if self.baseline not in names:
            raise ValueError(f"baseline={self.baseline!r}: not an arm{near(self.baseline, names)}")

    def _check_checkpoints(self) -> None:
        """Refuse weights for a reward that is not used: it would be another one, downloaded."""
        parts = [part for text in (self.reward, *self.judges) for part in reward_parts(text)]
        used = [*parts, self.diversity]
        odd = next((key for key in self.checkpoints if key not in used), None)
        if odd is not None:
            raise ValueError(f"checkpoints: no reward here is called {odd!r}{near(odd, used)}")

    @property
    def images(self) -> int:
        """Images per prompt: arms x seeds."""
        return len(self.arms) * len(self.seeds)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, JSON-ready, with every default written out."""
        return self.model_dump(mode="json")


def read(path: str | Path) -> Comparison:
    """The comparison in a YAML file.

    Files of prompts and scales that lie beside the YAML file may be named relative to it.

    Raises:
        ComparisonError: It cannot be read, has an unknown key (the nearest one is suggested), or a
            value that cannot be used.
    """
    data = read_yaml(path, ComparisonError)
    return from_dict(data, folder=Path(path).expanduser().parent)


def from_dict(data: Mapping[str, Any], *, folder: Path | None = None) -> Comparison:
    """The comparison that a mapping describes, as its YAML file would.

    Args:
        data: Keys are those of `Comparison`; `arms` is a list of names, or of mappings with the
            keys of `Arm`.
        folder: Where files of prompts and scales may lie.

    Raises:
        ComparisonError: As `read`.
    """
    values = {key: value for key, value in data.items() if value is not None}
    if isinstance(values.get("arms"), list | tuple):
        values["arms"] = tuple(map(_arm, values["arms"]))
    if "reward" not in values and values.get("pipeline", "shapes") not in NAMES:
        raise ComparisonError("reward: missing; name what the arms optimise, such as hpsv2")
    for key in ("prompts", "scale"):
        if isinstance(values.get(key), str) and folder is not None:
            beside = folder / values[key]
            values[key] = str(beside) if beside.is_file() else values[key]
    return build(Comparison, values, ComparisonError)


def _arm(value: Any) -> Arm:
    value = {"name": value} if isinstance(value, str) else value
    name = value.get("name") if isinstance(value, Mapping) else None
    return build(Arm, value, ComparisonError, f"arm {name!r}" if name is not None else "arms")


def _check_fair(comparison: Comparison, arm: Arm) -> None:
    """Refuse an undeclared difference, and a declared one that is none."""
    for key in SHARED:
        own, shared = getattr(arm, key), getattr(comparison, key)
        different = own is not None and own != shared
        if different and key not in arm.differs:
            what = "the pipeline's own" if shared is None else repr(shared)
            raise ValueError(
                f"arm {arm.name!r}: {key}={own!r}, while the others have {what}: the comparison "
                f"would not be of equals; leave it out, or state it with differs: [{key}]"
            )
        if key in arm.differs and not different:
            raise ValueError(
                f"arm {arm.name!r}: differs names {key!r}, and it does not differ; remove it, or "
                f"give the arm its own {key}"
            )


def _refuse_empty(settings: Settings, keys: tuple[str, ...]) -> None:
    for key in keys:
        value = getattr(settings, key)
        if value is not None and not value.strip():
            raise ValueError(f"{key}={value!r}: must not be empty")


def _is_name(name: str) -> bool:
    inner = all(c.isalnum() or c in "._+-" for c in name)
    whole = 1 <= len(name) <= 60 and name.isascii() and inner
    return whole and name[0].isalnum() and name[-1] != "."


def _is_bare(method: str) -> bool:
    from steer.methods.text import is_bare

    return is_bare(method)


def _pair(value: Any) -> Any:
    if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError(f"size={value!r}: pixels, such as 512 or [height, width]")
    return value if value is None else tuple(value)
