"""The blocks that one call of a modular pipeline runs, and the stand-ins of a search in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    PipelineState,
)
from torch import Tensor


_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")


class Workflow:
    """The blocks that one call of a modular pipeline runs.

    Args:
        blocks: They, in their order; loops are one block each.
        inputs: What a call may give them, as diffusers describes it.

    Attributes:
        loop: The block of the denoising loop; `None` where there is not exactly one.
        noise: The block that draws the initial latents; `None` where none does.
        chain: It, and what changes the latents between it and the loop.
        inputs: The arguments of the call, with their defaults.
    """

    def __init__(self, blocks: Sequence[Any], inputs: Sequence[Any]) -> None:
        self.blocks = blocks
        loops = [block for block in blocks if isinstance(block, LoopSequentialPipelineBlocks)]
        self.loop = loops[0] if len(loops) == 1 else None
        before = blocks[: blocks.index(self.loop)] if self.loop is not None else ()
        found = [k for k, block in enumerate(before) if _draws(block)]
        self.noise = before[found[0]] if found else None
        after = before[found[0] :] if found else ()
        self.chain = [block for block in after if _changes_latents(block)]
        self.inputs: dict[str, Any] = {}
        for given in inputs:
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
        images: Any = (state.get(self.count) if self.count else None) or 1
        state.values["generator"] = [g for g in generators for _ in range(images)]
        state.values["latents"] = None
        for block in self.chain:
            _call(block, pipe, state)
        latents: Any = state.get("latents")
        return latents[::images]

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


def _draws(block: Any) -> bool:
    return "generator" in block.input_names and "latents" in block.intermediate_output_names


def _changes_latents(block: Any) -> bool:
    """Whether a block may set the latents; one that sets the timesteps only reads their shape."""
    made = block.intermediate_output_names
    return "timesteps" not in made and "latents" in (*block.input_names, *made)


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
