"""What `steer sample` is asked to do; known without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from steer.core.files.atomic import plain
from steer.jobs.call import check_call
from steer.jobs.reward_loader import scale_stamp


if TYPE_CHECKING:
    from steer.methods.text import Written

COMPUTE = 4.0
"""Plain calls' worth of denoiser rows, where neither `compute` nor a written method says so."""


@dataclass(frozen=True)
class SampleJob:
    """The arguments of a run: equal jobs give equal images. Bad values raise ValueError.

    Attributes:
        prompts: What to draw.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        reward: A reward's name, or weights as in `"hpsv2=0.7,clip:ViT-B-32:openai=0.3"`.
        compute: Denoiser rows in plain calls; 4 when left out, but for a method written out,
            which has its own.
        method: As in `"Prune(start=8, keep=(4, 2), at=(0.25, 0.5))"`, or as YAML has it,
            `{"Prune": {"start": 8}}`; None is the default.
        judges: Held-out rewards to report beside the optimised one, written as `reward`;
            `"auto"` becomes one of another family (`steer.rewards.judges`).
        steps: Denoising steps; None is the pipeline's own default.
        guidance_scale: None is the pipeline's own default.
        seed: Prompt k is drawn with the seed `seed + k` (`steer.core.seeds.prompt_seed`).
        images_per_prompt: How many winners per prompt.
        device: `"auto"` or a torch device.
        devices: Over which the particles of a call are spread, the pipeline's own first; None is
            `device` alone.
        dtype: `"auto"`, `"float32"`, `"float16"` or `"bfloat16"`.
        lane_width: Particles per returned image in one denoiser call; None is chosen.
        base: Also draw the plain call's image, for comparison; the untuned pipeline's.
        tuned: A tuned checkpoint: a name of `steer tuned`, a hub id, a path.
        blend: How it combines with the pipeline's own denoiser, as in `"RLG(2.0)"`.
        preview: What decodes previews, as `steer.guided(preview=...)` takes it.
        plans: What `compute` stands for: a file that `steer calibrate` wrote.
        scale: What the reward is put on: a file that `steer scale` wrote.
        call: Further arguments of the pipeline's calls, such as `{"negative_prompt": "blurry"}`.
    """

    prompts: tuple[str, ...]
    pipeline: str = "shapes"
    reward: str = "shapes"
    compute: float | None = None
    method: Written | None = None
    judges: tuple[str, ...] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    images_per_prompt: int = 1
    device: str = "auto"
    dtype: str = "auto"
    lane_width: int | None = None
    base: bool = True
    tuned: str | None = None
    blend: str | None = None
    preview: str | None = None
    plans: str | None = None
    scale: str | None = None
    devices: tuple[str, ...] | None = None
    call: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(
                f"prompts={list(self.prompts)!r}: give at least one, none of them empty"
            )
        for prompt in self.prompts:
            if not _is_unicode(prompt):
                raise ValueError(f"prompts: {prompt!r} is not UTF-8")
        self._check_effort()
        for name in ("steps", "images_per_prompt", "lane_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        check_call(self.call or {})
        self._choose_devices()
        self._choose_judges()
        if len(set(self.judges)) < len(self.judges):
            raise ValueError(f"judges={list(self.judges)!r}: name each once")

    def _choose_devices(self) -> None:
        """`device` becomes the first of `devices`."""
        if self.devices is None:
            return
        named = ",".join(self.devices)
        if not all(self.devices) or "auto" in self.devices:
            raise ValueError(f"devices={named!r}: name each, as in cuda:0,cuda:1")
        if self.device not in ("auto", self.devices[0]):
            raise ValueError(
                f"device={self.device!r} with devices={named!r}: the first of several is the "
                "pipeline's own; leave device out"
            )
        if self.tuned is not None or self.blend is not None:
            raise ValueError(
                f"devices={named!r} with tuned or blend: a call with tuned weights runs on one "
                "device; leave one of them out"
            )
        object.__setattr__(self, "device", self.devices[0])

    def _choose_judges(self) -> None:
        """A reward's name in the place of `"auto"`."""
        if "auto" in self.judges:
            from steer.rewards.judges import with_auto

            object.__setattr__(self, "judges", tuple(with_auto(self.judges, self.reward)))

    def _check_effort(self) -> None:
        """`compute` and `method` fit together; `compute` is filled in where none of them says."""
        sized = self.method is None or _is_bare(self.method)
        if self.compute is None and sized:
            object.__setattr__(self, "compute", COMPUTE)
        if self.plans is not None and self.method is not None:
            raise ValueError(
                f"plans={self.plans!r} with method={self.method!r}: plans choose the method; leave "
                "one of them out"
            )
        if self.compute is None:
            return
        if not sized:
            raise ValueError(
                f"compute={self.compute:g} with method={self.method!r}: a method written out has "
                "its own cost; leave one of them out"
            )
        if not 1 <= self.compute < math.inf:
            raise ValueError(
                f"compute={self.compute:g}: a plain call is 1; give 1 or more (for example 4)"
            )

    def to_dict(self) -> dict[str, Any]:
        """The arguments by name, JSON-ready; of the file of scales, what tells its content, too."""
        stamp = None if self.scale is None else scale_stamp(self.scale)
        return plain({**asdict(self), "scale": stamp})


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_bare(method: Written) -> bool:
    from steer.methods.text import is_bare

    return is_bare(method)
