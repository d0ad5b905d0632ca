"""What a comparison is asked to do, and the YAML that says so; known without importing torch.

The rule of a fair comparison stands here: all arms share steps, guidance and scheduler, unless an
arm says in `differs` that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steer.core.checks import near
from steer.core.errors import ComparisonError
from steer.methods.text import is_bare
from steer.rewards.parse import parse_reward


SHARED = ("steps", "guidance", "scheduler")
"""What arms share unless they declare that they differ in it."""


@dataclass(frozen=True)
class Arm:
    """One way to draw the prompts. Without options it is the plain call.

    Attributes:
        name: Unique; also the name of its folder: letters, digits, and `. _ + -` within.
        tuned: A tuned checkpoint, as `steer.guided(tuned=...)` takes it.
        blend: How tuned and untuned are combined, as in `"RLG(2.0)"`.
        method: As `steer sample --method` takes it; None is chosen by `compute`.
        compute: Plain calls' worth of denoiser rows; None is 1, or the method's own.
        steps, guidance, scheduler: Instead of the comparison's; only with `differs`.
        differs: Which of these three are meant to differ.
        label: For the page; default the name.
    """

    name: str
    tuned: str | None = None
    blend: str | None = None
    method: str | None = None
    compute: float | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    differs: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        where = f"arm {self.name!r}"
        if not _is_name(self.name):
            raise ComparisonError(
                f"{where}: a name has letters, digits, and . _ + - within (it names a folder); "
                "use `label` for the page"
            )
        for key in ("tuned", "blend", "method", "scheduler", "label"):
            _text(where, key, getattr(self, key))
        _whole(where, "steps", self.steps)
        _number(where, "guidance", self.guidance, 0)
        _number(where, "compute", self.compute, 1)
        odd = [key for key in self.differs if key not in SHARED]
        if odd:
            raise ComparisonError(f"{where}: differs={odd!r}: may name {', '.join(SHARED)}")
        if self.compute is not None and self.method is not None and not is_bare(self.method):
            raise ComparisonError(
                f"{where}: compute={self.compute:g} with method={self.method!r}: a method written "
                "out has its own cost; leave one of them out"
            )


@dataclass(frozen=True)
class Comparison:
    """Arms x prompts x seeds, and how they are judged. Equal comparisons give equal images.

    Attributes:
        arms: At least two, of different names.
        prompts: A set's name (`"shapes"`, `"hpsv2"`, `"hpsv2:photo"`, ...), a text file, a list of
            texts, or a mapping with `set` and its options; see `steer.compare.prompts`.
        seeds: Noise seeds; prompt k with seed s is drawn from the same noise in every arm.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        reward: What the arms optimise: a name, or weights as in `"hpsv2=0.7,aesthetic=0.3"`.
        judges: Rewards that no arm optimises; for the shapes world also `"oracle"` (the share of
            the caption's constraints that are met) and `"oracle-all"` (1 where all are).
        steps, guidance, scheduler: Of all arms; None is the pipeline's own. A scheduler is the name
            of a diffusers class, such as `"DDIMScheduler"`.
        size: Height and width of the images; None is the pipeline's own.
        baseline: The arm that the others are held against; default the first.
        diversity: Whose image features measure how different the seeds' images are: a reward with
            an image encoder (`"shapes-clip"`, `"clip:ViT-B-32:openai"`), or `"pixels"`.
        checkpoints: Local weights by reward name.
        device, dtype: As for `steer sample`.
        batch: Images of an arm per pipeline call. More is faster where one image's particles do not
            fill the device; each is then recorded with its share of the call's cost.
        width: Latents per denoiser call; None is chosen.
        show: Most prompts whose images stand on the page.
        title: Of the page.
    """

    arms: tuple[Arm, ...]
    prompts: Any = "shapes"
    seeds: tuple[int, ...] = (0,)
    pipeline: str = "shapes"
    reward: str = "shapes"
    judges: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size: tuple[int, int] | None = None
    baseline: str | None = None
    diversity: str = "pixels"
    checkpoints: Mapping[str, str] | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch: int = 1
    width: int | None = None
    show: int = 24
    title: str | None = None

    def __post_init__(self) -> None:
        names = [arm.name.lower() for arm in self.arms]  # folders: some disks ignore case
        if len(names) < 2:
            raise ComparisonError(f"arms={[a.name for a in self.arms]!r}: a comparison needs two")
        twice = next((a.name for i, a in enumerate(self.arms) if a.name.lower() in names[:i]), None)
        if twice is not None:
            raise ComparisonError(f"arms: the name {twice!r} stands there twice; give each its own")
        self._check_values()
        if self.baseline is None:
            object.__setattr__(self, "baseline", self.arms[0].name)
        if self.baseline not in [arm.name for arm in self.arms]:
            raise ComparisonError(
                f"baseline={self.baseline!r}: not an arm"
                f"{near(str(self.baseline), [a.name for a in self.arms])}"
            )
        self._check_checkpoints()
        for arm in self.arms:
            _check_fair(self, arm)

    def _check_values(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ComparisonError(f"seeds={list(self.seeds)!r}: at least one, each once")
        if any(type(seed) is not int or seed < 0 for seed in self.seeds):
            raise ComparisonError(f"seeds={list(self.seeds)!r}: whole numbers, none negative")
        names = ("pipeline", "reward", "scheduler", "baseline", "diversity", "device", "dtype")
        for key in (*names, "title"):
            _text("the comparison", key, getattr(self, key))
        for key in ("steps", "batch", "width"):
            _whole("the comparison", key, getattr(self, key))
        if type(self.show) is not int or self.show < 0:
            raise ComparisonError(f"show={self.show!r}: how many prompts the page shows, 0 or more")
        _number("the comparison", "guidance", self.guidance, 0)
        if len(set(self.judges)) < len(self.judges) or self.reward in self.judges:
            raise ComparisonError(
                f"judges={list(self.judges)!r} with reward={self.reward!r}: each once, and the "
                "optimised reward is reported anyway"
            )

    def _check_checkpoints(self) -> None:
        """Refuse weights for a reward that is not used: it would be another one, downloaded."""
        try:
            parts = parse_reward(self.reward)
        except ValueError as error:
            raise ComparisonError(str(error)) from error
        used = [*([parts] if isinstance(parts, str) else parts), *self.judges, self.diversity]
        odd = next((key for key in self.checkpoints or {} if key not in used), None)
        if odd is not None:
            raise ComparisonError(f"checkpoints: no reward here is called {odd!r}{near(odd, used)}")

    @property
    def images(self) -> int:
        """Images per prompt: arms x seeds."""
        return len(self.arms) * len(self.seeds)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, JSON-ready, with every default written out."""
        return asdict(self)


def read(path: str | Path) -> Comparison:
    """The comparison in a YAML file.

    A prompts file that lies beside the YAML file may be named relative to it.

    Raises:
        ComparisonError: It cannot be read, has an unknown key (the nearest one is suggested), or a
            value that cannot be used.
    """
    import yaml

    path = Path(path).expanduser()
    try:
        data = yaml.load(path.read_text("utf-8"), _loader())
    except (OSError, UnicodeDecodeError) as error:
        raise ComparisonError(f"config={str(path)!r}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ComparisonError(f"config={str(path)!r}: not valid YAML ({error})") from error
    if not isinstance(data, Mapping):
        raise ComparisonError(f"config={str(path)!r}: write `arms:` and other keys, one per line")
    return from_dict(data, folder=path.parent)


def from_dict(data: Mapping[str, Any], *, folder: Path | None = None) -> Comparison:
    """The comparison that a mapping describes, as its YAML file would.

    Args:
        data: Keys are those of `Comparison`; `arms` is a list of mappings with those of `Arm`.
        folder: Where a prompts file may lie.

    Raises:
        ComparisonError: As `read`.
    """
    values = dict(data)
    _check_keys("the configuration", values, [f.name for f in fields(Comparison)])
    arms = values.get("arms")
    if not isinstance(arms, Sequence) or isinstance(arms, str):
        raise ComparisonError(f"arms={arms!r}: a list of arms, such as [{{name: base}}, ...]")
    values["arms"] = tuple(map(_arm, arms))
    for key in ("judges", "seeds"):
        values[key] = _several(key, values[key]) if values.get(key) is not None else None
    if isinstance(values.get("reward"), Mapping):
        values["reward"] = ",".join(f"{k}={float(v):g}" for k, v in values["reward"].items())
    if values.get("size") is not None:
        values["size"] = _size(values["size"])
    if "reward" not in values and values.get("pipeline", "shapes") != "shapes":
        raise ComparisonError("reward: missing; name what the arms optimise, such as hpsv2")
    if isinstance(values.get("prompts"), str) and folder is not None:
        beside = folder / values["prompts"]
        values["prompts"] = str(beside) if beside.is_file() else values["prompts"]
    _mapping("checkpoints", values.get("checkpoints"))
    return Comparison(**{k: v for k, v in values.items() if v is not None})


def _loader() -> Any:
    """A safe YAML loader that refuses a key given twice, which YAML forbids and PyYAML drops."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name!r} stands there twice", key.start_mark
                    )
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Loader


def _arm(value: Any) -> Arm:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ComparisonError(f"arms: {value!r}: each arm is a mapping with a `name`")
    _check_keys(f"arm {value['name']!r}", value, [f.name for f in fields(Arm)])
    differs = value.get("differs") or ()
    differs = (differs,) if isinstance(differs, str) else tuple(differs)
    return Arm(**{**value, "differs": differs})


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    odd = next((str(key) for key in values if key not in known), None)
    if odd is not None:
        raise ComparisonError(f"{where}: the key {odd!r} is unknown{near(odd, known)}")


def _check_fair(comparison: Comparison, arm: Arm) -> None:
    """Refuse an undeclared difference, and a declared one that is none."""
    for key in SHARED:
        own, shared = getattr(arm, key), getattr(comparison, key)
        different = own is not None and own != shared
        if different and key not in arm.differs:
            what = "the pipeline's own" if shared is None else repr(shared)
            raise ComparisonError(
                f"arm {arm.name!r}: {key}={own!r}, while the others have {what}: the comparison "
                f"would not be of equals; leave it out, or state it with differs: [{key}]"
            )
        if key in arm.differs and not different:
            raise ComparisonError(
                f"arm {arm.name!r}: differs names {key!r}, and it does not differ; remove it, or "
                f"give the arm its own {key}"
            )


def _is_name(name: Any) -> bool:
    if not isinstance(name, str) or not 1 <= len(name) <= 60:
        return False
    inner = all(c.isalnum() or c in "._+-" for c in name)
    return name.isascii() and inner and name[0].isalnum() and name[-1] != "."


def _several(key: str, value: Any) -> tuple[Any, ...]:
    if key == "seeds" and type(value) is int and value >= 1:
        return tuple(range(value))
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise ComparisonError(f"{key}={value!r}: a list{', or how many' * (key == 'seeds')}")
    return tuple(value)


def _size(value: Any) -> tuple[int, int]:
    pair = (value, value) if type(value) is int else tuple(value)
    if len(pair) != 2 or any(type(v) is not int or v < 8 for v in pair):
        raise ComparisonError(f"size={value!r}: pixels, such as 512 or [height, width]")
    return pair


def _mapping(key: str, value: Any) -> None:
    if value is not None and not (
        isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())
    ):
        raise ComparisonError(f"{key}={value!r}: a mapping of names to paths")


def _text(where: str, key: str, value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise ComparisonError(f"{where}: {key}={value!r}: must be text, and not empty")


def _whole(where: str, key: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ComparisonError(f"{where}: {key}={value!r}: a whole number, at least 1")


def _number(where: str, key: str, value: Any, least: float) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (fits and math.isfinite(value) and value >= least):
        raise ComparisonError(f"{where}: {key}={value!r}: a number, at least {least:g}")
