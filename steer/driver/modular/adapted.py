"""Modular pipelines of diffusers, called and searched as the classic ones are.

A `ModularPipeline` is a tree of blocks that pass a state on: encode, draw latents, set timesteps,
loop, decode. Which of them run depends on what a call gives. Here such a pipeline gets, for one
call, what steer reads of a classic one: a signature, `prepare_latents`, `progress_bar`, an output
with fields. The stand-ins of a search sit in the blocks for the time of the call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.modular_pipelines.modular_pipeline import PipelineState, SequentialPipelineBlocks
from diffusers.pipelines import auto_pipeline
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import edits_latents
from steer.driver.modular.output import ModularOutput
from steer.driver.modular.workflow import Workflow


_BORROWED = (
    "_unpack_latents",
    "_patchify_latents",
    "_unpatchify_latents",
    "_denormalize_latents",
    "upcast_vae",
)
"""What is read of a classic pipeline to decode its latents; modular ones have it in blocks."""
_CLASSIC = ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AUTO_TEXT2VIDEO_PIPELINES_MAPPING")


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
        loop: Any = self._workflow.loop
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
    def guidance_scale(self) -> float | None:
        """The guider's scale; `None` where it has none."""
        return getattr(getattr(self, "guider", None), "guidance_scale", None)

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
    if not resolves():
        raise UnsupportedPipelineError(
            f"diffusers {diffusers.__version__} does not say which blocks of a modular pipeline a "
            "call runs: upgrade diffusers, or use the classic pipeline"
        )
    whole = pipe._blocks
    wanted = {name: value for name, value in given.items() if value is not None}
    try:
        run = whole.get_execution_blocks(**wanted)
        leaves = list(run.sub_blocks.values())
    except NotImplementedError:  # one block, which is the whole pipeline
        run, leaves = whole, [whole]
    work = Workflow(leaves, run.inputs)
    signature = work.signature()
    key = (type(pipe), *map(type, leaves), str(signature))
    if key not in _made:
        _made[key] = _class_for(pipe, work, signature)
    twin = object.__new__(_made[key])
    twin.__dict__ = pipe.__dict__
    twin._workflow = work
    idle = {n for n in whole.input_names if n not in work.inputs and given.get(n) is None}
    return twin, {n: value for n, value in given.items() if n not in {*idle, "state"}}


def resolves() -> bool:
    """Whether this diffusers tells which blocks a call runs."""
    find = getattr(SequentialPipelineBlocks, "get_execution_blocks", None)
    given = () if find is None else inspect.signature(find).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in given)


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
