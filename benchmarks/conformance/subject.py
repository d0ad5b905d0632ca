"""One pipeline under test: its plain call, and guided calls of the same inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import steer
from benchmarks.conformance.cases import Case
from benchmarks.conformance.compare import difference, frames, tensors
from steer.search.method import Method


STEPS = 4
"""Steps of a call whose test takes fewer, so that cuts and guidance have some between them."""


class Limit(Exception):
    """What keeps a check from saying anything of steer."""


@dataclass(eq=False)
class Subject:
    """A pipeline whose plain call is known.

    Attributes:
        case: Where it comes from.
        pipe: The pipeline.
        given: Arguments in place of the test's own: steps and output type.
        plain: First field of the plain call's output.
        state: State of the call's generator afterwards; None without one.
        scheduler: The pipeline's scheduler, which must stay there.
        finals: Final rewards by check and particle, to compare checks with each other.
    """

    case: Case
    pipe: Any
    given: dict[str, Any]
    plain: Any
    state: Tensor | None
    scheduler: Any
    finals: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def pictures(self) -> Tensor | None:
        """The plain call's images or frames."""
        return frames(self.plain)

    def inputs(self, **more: Any) -> dict[str, Any]:
        """Arguments of a call."""
        return self.case.inputs(self.pipe, **{**self.given, **more})

    def varies(self) -> bool:
        """Whether the plain call makes something else of another seed (not where it saturates)."""
        inputs = self.inputs()
        if not isinstance(inputs.get("generator"), torch.Generator):
            return True
        inputs["generator"] = torch.Generator().manual_seed(1234)
        return difference(self.pipe(**inputs)[0], self.plain) != 0

    def takes(self, name: str) -> bool:
        """Whether the pipeline's call has an argument of that name."""
        return name in inspect.signature(type(self.pipe).__call__).parameters

    def guided(
        self, method: Method, reward: Any, lane_width: int | None = None, **more: Any
    ) -> Any:
        """The output of a guided call."""
        width: dict[str, Any] = {} if lane_width is None else {"lane_width": lane_width}
        return steer.guided(self.pipe, reward=reward, method=method, **width)(**self.inputs(**more))


def prepare(case: Case) -> Subject:
    """Build a pipeline and run its plain call twice.

    Raises:
        Limit: Either fails, or nothing can be compared with what the call returns.
    """
    try:
        pipe = case.build()
        own = case.inputs(pipe)
    except Exception as error:
        raise Limit(f"cannot be built offline: {sentence(error)}") from error
    given = _settings(case, pipe, own) | _mask(own.get("mask_image"))
    plain, _ = _run(case, pipe, given)
    again, state = _run(case, pipe, given)
    if difference(plain, again) != 0:
        raise Limit("two plain calls differ")
    if not all(part.isfinite().all() for part in tensors(plain)):
        raise Limit("the plain call returns NaN")
    pictures = frames(plain)
    if pictures is not None and float(pictures.std()) == 0:
        raise Limit("the plain call returns a constant image")
    return Subject(case, pipe, given, plain, state, getattr(pipe, "scheduler", None))


def generator_state(inputs: dict[str, Any]) -> Tensor | None:
    """State of a call's first generator."""
    generator = inputs.get("generator")
    if isinstance(generator, list):
        generator = generator[0] if generator else None
    return None if generator is None else generator.get_state()


def sentence(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ").strip()[:500]


def _run(case: Case, pipe: Any, given: dict[str, Any]) -> tuple[Any, Tensor | None]:
    inputs = case.inputs(pipe, **given)
    with torch.no_grad():
        return pipe(**inputs)[0], generator_state(inputs)


def _settings(case: Case, pipe: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The first arguments that the plain call takes and with which images come in [0, 1].

    Tensors where they are, arrays else (DeepFloyd IF and Kandinsky return tensors in [-1, 1]).
    """
    last: Exception | None = None
    raw: set[str] = set()
    for given in _candidates(pipe, own):
        kind = given.get("output_type", "")
        if kind in raw:
            continue
        try:
            plain, _ = _run(case, pipe, given)
        except Exception as error:
            last = error
            continue
        if kind == "pt" and _is_raw(plain):
            raw.add(kind)
        elif tensors(plain):
            return given
    raise Limit(f"the plain call does not run: {sentence(last)}" if last else "no tensors come out")


def _mask(own: Any) -> dict[str, Any]:
    """A mask with a hole, where the test's own keeps all of the given image, whatever is drawn."""
    if not hasattr(own, "convert") or np.asarray(own).max() >= 128:
        return {}
    pixels = np.asarray(own.convert("L")).copy()
    pixels[:, pixels.shape[1] // 2 :] = 255
    return {"mask_image": Image.fromarray(pixels)}


def _candidates(pipe: Any, own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    count = own.get("num_inference_steps")
    steps = {"num_inference_steps": STEPS} if isinstance(count, int) and count < STEPS else {}
    typed = "output_type" in inspect.signature(type(pipe).__call__).parameters
    types = [{"output_type": "pt"}, {"output_type": "np"}, {}] if typed else [{}]
    for more in types:
        yield {**steps, **more}
        if steps:
            yield more


def _is_raw(output: Any) -> bool:
    pictures = frames(output)
    return pictures is not None and bool(pictures.min() < -1e-4 or pictures.max() > 1 + 1e-4)
