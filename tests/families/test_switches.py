"""diffusers' own switches under a search, and the table of docs/switches.md that says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from torch import Tensor

from families import arguments, build, redness
from steer.core.errors import UnsupportedPipelineError
from steer.methods import BestOfN, Prune
from steer.pipeline.guided import guided


PAGE = Path(__file__).parents[2] / "docs" / "switches.md"
ROW = re.compile(r"^\| (`.+?`) \| (same|own|refused) \| (same|close|own|refused) \|", re.MULTILINE)

Switch = Callable[[Any], Any]


def _compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def _compiled_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def _model_offload(pipe: Any) -> None:
    """What `enable_model_cpu_offload` does, with an accelerator for this device."""
    hook = None
    for name in ("text_encoder", "unet", "vae"):
        module, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", hook)
        setattr(pipe, name, module)


def _sequential_offload(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, with an accelerator for this device."""
    for name in ("text_encoder", "unet", "vae"):
        accelerate.cpu_offload(getattr(pipe, name), torch.device("cpu"))


def _group_offload(pipe: Any) -> None:
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def _first_block(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))


def _pyramid(pipe: Any) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: 500,
    )
    pipe.transformer.enable_cache(config)


SWITCHES: dict[str, tuple[str, Switch]] = {
    "`pipe.to(device)`": ("sd", lambda pipe: pipe.to("cpu")),
    "`pipe.to(torch.bfloat16)`": ("sd", lambda pipe: pipe.to(torch.bfloat16)),
    "`pipe.enable_model_cpu_offload()`": ("sd", _model_offload),
    "`pipe.enable_sequential_cpu_offload()`": ("sd", _sequential_offload),
    "`pipe.unet.enable_group_offload(...)`": ("sd", _group_offload),
    "`pipe.unet = torch.compile(pipe.unet)`": ("sd", _compiled),
    "`pipe.unet.compile()`": ("sd", _compiled_in_place),
    "`pipe.unet.to(memory_format=torch.channels_last)`": (
        "sd",
        lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    ),
    "`pipe.fuse_qkv_projections()`": ("sdxl", lambda pipe: pipe.fuse_qkv_projections()),
    "`pipe.enable_attention_slicing()`": ("sd", lambda pipe: pipe.enable_attention_slicing()),
    "`pipe.vae.enable_slicing()`": ("sd", lambda pipe: pipe.vae.enable_slicing()),
    "`pipe.vae.enable_tiling()`": ("sd", lambda pipe: pipe.vae.enable_tiling()),
    "`pipe.enable_freeu(...)`": (
        "sd",
        lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    ),
    "`pipe.transformer.enable_layerwise_casting(...)`": (
        "flux",
        lambda pipe: pipe.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32),
    ),
    "`pipe.unet.register_forward_hook(...)`": (
        "sd",
        lambda pipe: pipe.unet.register_forward_hook(lambda *_: None),
    ),
    "`pipe.transformer.enable_cache(FirstBlockCacheConfig(...))`": ("flux", _first_block),
    "`pipe.transformer.enable_cache(PyramidAttentionBroadcastConfig(...))`": ("flux", _pyramid),
}
"""By its cell in the table: the family it is tried on, and how it is turned."""

METHOD = Prune(4, (2,), (0.5,))


def first(pipe: Any, method: Any, family: str) -> tuple[Tensor, Any]:
    out = guided(pipe, redness, method=method)(**arguments(family, output_type="pt"))
    return out[0], out.report


def plain_verdict(pipe: Any, family: str) -> str:
    """`same` where a search of one particle is the plain call with the switch on, bit for bit."""
    images = pipe(**arguments(family, output_type="pt"))[0]
    return "same" if torch.equal(first(pipe, BestOfN(1), family)[0], images) else "own"


def search_verdict(pipe: Any, family: str, bare: tuple[Tensor, Any]) -> str:
    """A pruned search beside the one without the switch: the same bits, close, or its own."""
    try:
        images, report = first(pipe, METHOD, family)
    except UnsupportedPipelineError as error:
        assert re.search(r"cache.*call pipe\.\w+\.disable_cache\(\) first", str(error))
        return "refused"
    scored = redness(images.float(), []).tolist()
    rounding = 1e-5 if images.dtype == torch.float32 else 5e-3  # decoded in another batch
    assert report.rewards == pytest.approx(scored, abs=rounding)
    if torch.equal(images, bare[0]):
        return "same"
    near = torch.allclose(images.float(), bare[0], atol=1e-3) and report.chosen == bare[1].chosen
    return "close" if near else "own"


def rows() -> dict[str, tuple[str, str]]:
    return {name: (plain, search) for name, plain, search in ROW.findall(PAGE.read_text())}


def test_the_page_has_a_row_for_every_switch() -> None:
    assert list(rows()) == list(SWITCHES)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_does_what_the_page_says(name: str) -> None:
    family, turn = SWITCHES[name]
    pipe = build(family)
    bare = first(pipe, METHOD, family)
    turn(pipe)
    found = plain_verdict(pipe, family), search_verdict(pipe, family, bare)
    said = rows()[name]
    assert found == said or (found, said[1]) == ((said[0], "same"), "close")


def test_callbacks_see_the_step_that_is_evaluated() -> None:
    """`callback_on_step_end` is called once per denoiser call, with tensors of those rows."""
    pipe, seen = build("sd"), []

    def note(pipe: Any, index: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((index, int(t), len(tensors["latents"])))
        return tensors

    given = arguments("sd", output_type="pt", callback_on_step_end=note)
    pipe(**given)
    plain, seen[:] = list(seen), []
    given = arguments("sd", output_type="pt", callback_on_step_end=note)
    out = guided(pipe, redness, method=METHOD, lane_width=1)(**given)
    assert len(seen) == out.report.ledger.denoiser_calls > len(plain) == 4
    assert {*seen} == {*plain}  # the same indices with the same timesteps, one row each


def test_forward_hooks_see_every_denoiser_call() -> None:
    pipe, rows_seen = build("sd"), []
    pipe.unet.register_forward_hook(lambda _, args, out: rows_seen.append(len(args[0])))
    out = guided(pipe, redness, method=METHOD)(**arguments("sd", output_type="pt"))
    assert len(rows_seen) == out.report.ledger.denoiser_calls
