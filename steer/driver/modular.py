"""Modular pipelines of diffusers, called and searched as the classic ones are.

A `ModularPipeline` is a tree of blocks that pass a state on: encode, draw latents, set timesteps,
loop, decode. Which of them run depends on what a call gives. Here such a pipeline gets, for one
call, what steer reads of a classic one: a signature, `prepare_latents`, `progress_bar`, an output
with fields. The stand-ins of a search sit in the blocks for the time of the call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    PipelineState,
)
from diffusers.pipelines import auto_pipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import edits_latents


_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
_BORROWED = (
    "_unpack_latents",
    "_patchify_latents",
    "_unpatchify_latents",
    "_denormalize_latents",
    "upcast_vae",
)
"""What is read of a classic pipeline to decode its latents; modular ones have it in blocks."""
_CLASSIC = ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AUTO_TEXT2VIDEO_PIPELINES_MAPPING")


@dataclass
class ModularOutput(BaseOutput):
    """What a guided call of a modular pipeline returns: its images or videos, and its state.

    All other values of the state are attributes too, as they are of a `PipelineState`.

    Attributes:
        images: The images, or what else the pipeline makes; `None` where it makes videos.
        videos: The videos.
        state: The `PipelineState` that the pipeline returned.
    """

    images: Any = None
    videos: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "state" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["state"], name)

    def asked(self, names: str | Sequence[str] | None) -> Any:
        """What a modular pipeline returns for `output=names`."""
        if names is None:
            return self
        if isinstance(names, str):
            return getattr(self, names, None)
        return {name: getattr(self, name, None) for name in names}


class Workflow:
    """The blocks that one call of a modular pipeline runs.

    Args:
        blocks: They, in their order; loops are one block each.

    Attributes:
        loop: The block of the denoising loop; `None` where there is not exactly one.
        noise: The block that draws the initial latents; `None` where none does.
        chain: It, and what changes the latents between it and the loop.
        inputs: The arguments of the call, with their defaults.
    """

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = blocks
        loops = [block for block in blocks if isinstance(block, LoopSequentialPipelineBlocks)]
        self.loop = loops[0] if len(loops) == 1 else None
        before = blocks[: blocks.index(self.loop)] if self.loop is not None else ()
        found = [k for k, block in enumerate(before) if _draws(block)]
        self.noise = before[found[0]] if found else None
        after = before[found[0] :] if found else ()
        self.chain = [
            b for b in after if "latents" in (*b.input_names, *b.intermediate_output_names)
        ]
        self.inputs: dict[str, Any] = {}
        for given in (given for block in blocks for given in block.inputs):
            self.inputs.setdefault(given.name or given.kwargs_type, given.default)
        self._entered: PipelineState | None = None
        self._before: PipelineState | None = None
        self._latest: PipelineState | None = None

    @property
    def parts(self) -> list[Any]:
        """The loop's block, and all blocks in it."""
        return [] if self.loop is None else [self.loop, *_inside(self.loop)]

    @property
    def starts_from_image(self) -> bool:
        """Whether what is drawn is mixed with a given image before the loop begins."""
        return "strength" in self.inputs

    @property
    def count(self) -> str | None:
        """The argument that says how many images a prompt gets."""
        return next((name for name in _COUNTS if name in self.inputs), None)

    @property
    def widens(self) -> bool:
        """Whether latents of any number of rows can be drawn by one block."""
        names = () if self.noise is None else self.noise.input_names
        return "batch_size" in names and not self.starts_from_image

    def signature(self) -> inspect.Signature:
        """Of a call of this workflow, with `self`."""
        kind = inspect.Parameter
        more = {**self.inputs, "output": None}
        return inspect.Signature(
            [kind("self", kind.POSITIONAL_ONLY)]
            + [kind(name, kind.KEYWORD_ONLY, default=value) for name, value in more.items()]
        )

    def prepare(self, pipe: Any, given: Mapping[str, Any]) -> Tensor:
        """Initial latents, by the block that draws them, with other values of its inputs."""
        assert self._before is not None
        self._latest = state = _copied(self._before)
        state.values.update(given)
        _call(self.noise, pipe, state)
        return state.values["latents"]

    def redraw(self, pipe: Any, generators: Sequence[torch.Generator]) -> Tensor:
        """What the loop would begin with for other generators, one row per prompt."""
        assert self._entered is not None
        state = _copied(self._entered)
        images = (state.get(self.count) if self.count else None) or 1
        state.values["generator"] = [g for g in generators for _ in range(images)]
        state.values["latents"] = None
        for block in self.chain:
            _call(block, pipe, state)
        return state.values["latents"][::images]

    @contextmanager
    def searched(self, source: Callable[..., Tensor] | None, bar: Any) -> Iterator[None]:
        """The blocks with the stand-ins of a search in them, and put back whatever happens.

        Args:
            source: What draws the latents in the place of the block that does.
            bar: The progress bar in the place of the loop's own.
        """
        with ExitStack() as stack:
            if self.loop is not None:
                stack.enter_context(_as(self.loop, self._enter))
                for block in _inside(self.loop):  # they switch gradients off, one by one
                    bare = inspect.unwrap(type(block).__call__)
                    stack.enter_context(_as(block, bare))
                self.loop.__dict__["progress_bar"] = bar
                stack.callback(self.loop.__dict__.pop, "progress_bar", None)
            if source is not None:
                drawing = self._drawing(source)
                stack.enter_context(_as(self.noise, drawing))
            yield

    def _enter(self, block: Any, pipe: Any, state: PipelineState) -> Any:
        self._entered = _copied(state)
        return _call(block, pipe, state)

    def _drawing(self, source: Callable[..., Tensor]) -> Callable[..., Any]:
        """The block that draws, with `source` in the place of what it draws."""

        def draw(block: Any, pipe: Any, state: PipelineState) -> Any:
            self._before = _copied(state)
            names = {"batch_size": "batch_size", "generator": "generator", "latents": "latents"}
            if self.count is not None:
                names["num_images_per_prompt"] = self.count
            given = {name: state.get(own) for name, own in names.items()}
            latents = source(**given)
            assert self._latest is not None
            kept = {*names.values()} - {"latents"}
            for one in (*block.inputs, *block.intermediate_outputs):
                if one.name is not None and one.name not in kept:
                    state.set(one.name, self._latest.get(one.name), one.kwargs_type)
            state.set("latents", latents)
            return pipe, state

        return draw


class Adapted:
    """A modular pipeline for one call: its own attributes, with a classic pipeline's interface.

    Its class is made by `adapted`, below the pipeline's own and with its name; its attributes are
    the pipeline's, so what is set here is set there.
    """

    __slots__ = ()

    _workflow: Workflow

    def _run(self, given: dict[str, Any]) -> ModularOutput:
        """Run the pipeline; with what stands in for its functions, where a search is on."""
        given.pop("output", None)
        own, plain = vars(self), super().__call__  # pyright: ignore[reportAttributeAccessIssue]
        if "progress_bar" not in own:
            return self._output(plain(**given))
        with self._workflow.searched(own.get("prepare_latents"), own["progress_bar"]):
            return self._output(plain(**given))

    def _output(self, state: PipelineState) -> ModularOutput:
        names = [name for name in ("images", "videos") if state.get(name) is not None]
        last = self._workflow.blocks[-1].output_names
        name = next(iter([*names, *last]), "images")
        field = "videos" if name == "videos" else "images"
        output = ModularOutput(**{field: state.get(name)})
        output.state = state
        return output

    def progress_bar(self, **options: Any) -> Any:
        """The loop's own bar."""
        loop = self._workflow.loop
        return type(loop).progress_bar(loop, **options)

    def redraw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """What the loop would begin with for other generators, one row per prompt."""
        return self._workflow.redraw(self, generators)

    @property
    def loop_classes(self) -> tuple[type, ...]:
        """Classes whose code is the loop."""
        return tuple(map(type, self._workflow.parts))

    @property
    def guidance_rows(self) -> int:
        """Denoiser rows per latent: as many as the guider has conditions at most."""
        guider = copy.copy(getattr(self, "guider", None))
        if guider is None:
            return 1
        most = guider.num_conditions
        for step in range(getattr(guider, "_num_inference_steps", None) or 0):
            guider._step = step
            most = max(most, guider.num_conditions)
        return most

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the denoiser evaluates the null prompt beside the prompt."""
        return self.guidance_rows > 1

    @property
    def undriven(self) -> str | None:
        """Why no search can sit in the loop; `None` where one can."""
        work = self._workflow
        if work.loop is None:
            return "its blocks have no loop, or several"
        if work.noise is None:
            return "none of its blocks draws latents from a generator before the loop"
        if edits_latents(self):
            return "a block puts a given image into the latents after every step"
        return None


class _Widening(Adapted):
    """One whose batch can be made wider than the call's own."""

    __slots__ = ()

    def prepare_latents(
        self,
        batch_size: int,
        generator: Any,
        latents: Tensor | None = None,
        num_images_per_prompt: int | None = None,
    ) -> Tensor:
        """Initial latents, by the block that draws them."""
        work = self._workflow
        given = {"batch_size": batch_size, "generator": generator, "latents": latents}
        if work.count is not None:
            given[work.count] = num_images_per_prompt or 1
        return work.prepare(self, given)


_made: dict[tuple[Any, ...], type] = {}


def adapted(pipe: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A modular pipeline for one call, and the call's arguments.

    Args:
        pipe: A `ModularPipeline`.
        given: The arguments. Those that are `None` and not of the blocks that run are left out.

    Raises:
        UnsupportedPipelineError: A call that goes on from a state.
    """
    if given.get("state") is not None:
        raise UnsupportedPipelineError(
            "state=PipelineState(...): a guided call begins at the pipeline's first block; give "
            "the state's values as arguments"
        )
    whole = pipe._blocks
    wanted = {name: value for name, value in given.items() if value is not None}
    try:
        leaves = list(whole.get_execution_blocks(**wanted).sub_blocks.values())
    except NotImplementedError:  # one block, which is the whole pipeline
        leaves = [whole]
    work = Workflow(leaves)
    signature = work.signature()
    key = (type(pipe), *map(type, leaves), str(signature))
    if key not in _made:
        _made[key] = _class_for(pipe, work, signature)
    twin = object.__new__(_made[key])
    twin.__dict__ = pipe.__dict__
    twin._workflow = work
    idle = {n for n in whole.input_names if n not in work.inputs and given.get(n) is None}
    return twin, {n: value for n, value in given.items() if n not in {*idle, "state"}}


def is_modular(pipe: Any) -> bool:
    """Whether this is one of diffusers' modular pipelines."""
    return isinstance(pipe, ModularPipeline)


def _class_for(pipe: Any, work: Workflow, signature: inspect.Signature) -> type:
    """The class of a modular pipeline with a classic one's interface, for one workflow."""

    def call(self: Any, **given: Any) -> ModularOutput:
        return self._run(given)

    call.__name__, call.__signature__ = "__call__", signature  # pyright: ignore
    kind = type(pipe)
    members = {"__call__": call, "__slots__": ("_workflow",), "__module__": kind.__module__}
    classic = _classic_of(getattr(pipe._blocks, "model_name", None))
    for name in _BORROWED:
        own = inspect.getattr_static(classic, name, None)
        if own is not None and not hasattr(kind, name):
            members[name] = own
    return type(kind.__name__, (_Widening if work.widens else Adapted, kind), members)


def _classic_of(model: str | None) -> type | None:
    """The classic pipeline of a modular one's `model_name`."""
    tables = [getattr(auto_pipeline, name, {}) for name in _CLASSIC]
    return next((table[model] for table in tables if model in table), None)


def _draws(block: Any) -> bool:
    return "generator" in block.input_names and "latents" in block.intermediate_output_names


def _inside(block: Any) -> list[Any]:
    """All blocks in a block, at any depth."""
    found = []
    for part in block.sub_blocks.values():
        found += [part, *_inside(part)]
    return found


def _copied(state: PipelineState) -> PipelineState:
    """A state whose values can be set without setting the other's."""
    mapping = {kind: list(names) for kind, names in state.kwargs_mapping.items()}
    return PipelineState(values=dict(state.values), kwargs_mapping=mapping)


def _call(block: Any, pipe: Any, state: PipelineState) -> Any:
    """Run a block as its class does, whatever stands in for that."""
    kind = type(block)
    return getattr(kind, "_stands_for", kind).__call__(block, pipe, state)


@contextmanager
def _as(block: Any, call: Callable[..., Any]) -> Iterator[None]:
    """A block that does something else when it is called, for a while."""
    kind = type(block)

    def called(block: Any, *args: Any, **kwargs: Any) -> Any:
        return call(block, *args, **kwargs)

    members = {"__call__": called, "_stands_for": kind, "__module__": kind.__module__}
    block.__class__ = type(kind.__name__, (kind,), members)
    try:
        yield
    finally:
        block.__class__ = kind
