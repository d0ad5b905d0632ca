"""LoRA files: what is read of them, in what names, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tuned_pairs import adapted, drawn, fused, save_lora, with_denoiser

from steer.core.errors import CheckpointError
from steer.driver.denoisers.checkpoints import Checkpoint, load


@pytest.fixture
def made(tmp_path: Path) -> tuple[Any, Any, Path, dict[str, Tensor]]:
    """A pipeline, a LoRA on a copy of its denoiser, its file, and the file's tensors."""
    pipe = build("sd")
    config, lora = adapted(pipe, alpha=2)
    file = save_lora(pipe, config, lora, tmp_path)
    return pipe, lora, file, load_file(file)


def written(folder: Path, state: dict[str, Tensor], **metadata: Any) -> Path:
    """Tensors as a file without peft's options, or with those given."""
    texts = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "other.safetensors", texts)
    return folder / "other.safetensors"


def kohya(state: dict[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    named = {}
    for name, value in state.items():
        place, _, side = name.removesuffix(".weight").rpartition(".lora_")
        stem = place.replace("unet.", "lora_unet.").replace(".", "_")
        named[f"{stem}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
        if alpha is not None:
            named[f"{stem}.alpha"] = torch.tensor(alpha)
    return named


def close(pipe: Any, file: Path, lora: Any, strength: float = 1.0) -> None:
    expected = with_denoiser(pipe, fused(pipe, lora, strength), **arguments("sd"))
    found = drawn(pipe, "sd", {"tuned": file})[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def refused(pipe: Any, file: Any, words: str) -> None:
    """Refused in one sentence, and the denoiser is as before."""
    before = {name: weight.requires_grad for name, weight in pipe.unet.named_parameters()}
    with pytest.raises(CheckpointError, match=words) as caught:
        load(pipe, file)
    assert "\n" not in str(caught.value)
    assert {n: weight.requires_grad for n, weight in pipe.unet.named_parameters()} == before


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_names_of_attention_processors(made: Any, tmp_path: Path, prefix: str) -> None:
    """As diffusers wrote them before 0.21, as pipelines and as denoisers."""
    pipe, lora, _, state = made
    named = {}
    for name, value in state.items():
        place, _, side = name.removesuffix(".weight").rpartition(".lora_")
        block, _, part = place.removeprefix("unet.").rpartition(".to_")
        part = part.removesuffix(".0")
        way = "down" if side == "A" else "up"
        named[f"{prefix}{block}.processor.to_{part}_lora.{way}.weight"] = value
    close(pipe, written(tmp_path, named), lora)


def test_alphas_beside_names_of_the_denoisers_own(made: Any, tmp_path: Path) -> None:
    """diffusers reads them from Kohya's files only."""
    pipe, _, _, state = made
    bare = {name.removeprefix("unet."): value for name, value in state.items()}
    alphas = {
        name.replace("lora_A.weight", "alpha"): torch.tensor(1.0) for name in bare if "_A" in name
    }
    refused(pipe, written(tmp_path, {**bare, **alphas}), r"32 tensors are not used .*\.alpha")


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("old", [False, True])
def test_a_missing_matrix_is_named(made: Any, tmp_path: Path, side: str, old: bool) -> None:
    pipe, _, _, state = made
    lost = next(name for name in state if f"lora_{side}" in name)
    one = {name: value for name, value in state.items() if name != lost}
    none = {name: value for name, value in state.items() if f"lora_{side}" not in name}
    for rest, count in ((one, 1), (none, len(state) // 2)):
        file = written(tmp_path, kohya(rest, None) if old else rest)
        with pytest.raises(CheckpointError, match="tuned=") as caught:
            load(pipe, file)
        if not old:
            words = f"{count} matrices are missing ({lost.removeprefix('unet.')})"
            assert words in str(caught.value)


def test_tensors_that_nothing_reads_are_named(made: Any, tmp_path: Path) -> None:
    pipe, _, _, state = made
    name = next(iter(state)).replace("lora_A", "lora_C")
    refused(pipe, written(tmp_path, {**state, name: torch.ones(2, 2)}), "not used by diffusers")
    whole = {**state, "unet.conv_in.weight": torch.zeros(8, 4, 3, 3)}
    refused(pipe, written(tmp_path, whole), r"not used by diffusers \(conv_in")
    refused(pipe, written(tmp_path, {**state, "vae.x": torch.ones(2)}), r"other parts.*vae\.x")


def test_scales_of_dora_are_not_dropped(made: Any, tmp_path: Path) -> None:
    pipe, _, _, state = made
    named = kohya(state, 2.0)
    scales = {
        name.replace("lora_down.weight", "dora_scale"): torch.ones(1, value.shape[1])
        for name, value in named.items()
        if "lora_down" in name
    }
    refused(pipe, written(tmp_path, {**named, **scales}), r"a DoRA in the format of Kohya.*merge")


def test_alpha_scales_and_must_not_be_0(made: Any, tmp_path: Path) -> None:
    pipe, lora, file, state = made
    close(pipe, written(tmp_path, kohya(state, 1.0)), lora, 0.5)
    refused(pipe, written(tmp_path, kohya(state, 0.0)), r"alpha is 0 in 32 layers \(lora_unet_")
    with safe_open(file, framework="pt") as opened:
        options = json.loads(opened.metadata()["lora_adapter_metadata"])
    options["unet.lora_alpha"] = 0
    refused(pipe, written(tmp_path, state, **options), r"alpha is 0 at .*to_q")


def test_two_tensors_that_become_one_are_refused(made: Any, tmp_path: Path) -> None:
    pipe, _, _, state = made
    name = next(iter(state))
    bare = name.removeprefix("unet.")
    twice = {**state, bare: state[name] * 2}
    refused(
        pipe, written(tmp_path, twice), rf"\.safetensors'.*{re.escape(bare)}.* are both read as"
    )


@pytest.mark.parametrize("options", ["{", "[]", "3"])
def test_options_that_cannot_be_read_name_the_file(made: Any, tmp_path: Path, options: str) -> None:
    pipe, _, _, state = made
    path = tmp_path / "odd.safetensors"
    save_file(state, path, {"lora_adapter_metadata": options})
    refused(pipe, path, r"odd\.safetensors.*lora_adapter_metadata")


def test_numbers_without_sense_are_refused(made: Any, tmp_path: Path) -> None:
    pipe, _, _, state = made
    name = next(iter(state))
    for value in (torch.inf, torch.nan):
        broken = {**state, name: torch.full_like(state[name], value)}
        refused(pipe, written(tmp_path, broken), "not finite")
    huge = {**state, name: torch.full_like(state[name], 1e30)}
    refused(pipe, written(tmp_path, huge), r"changes the weights of .* by \d\.\d?e\+\d+")
    half = build("sd", dtype=torch.float16)
    over = {**state, name: torch.full_like(state[name], 1e5)}
    refused(half, written(tmp_path, over), r"by more than torch\.float16 holds")
    refused(pipe, written(tmp_path, kohya(state, torch.inf)), "not finite")


def test_a_lora_that_changed_its_base_is_refused(made: Any, tmp_path: Path) -> None:
    pipe, lora, file, state = made
    with safe_open(file, framework="pt") as opened:
        options = json.loads(opened.metadata()["lora_adapter_metadata"])
    for start in ("gaussian", True):
        options["unet.init_lora_weights"] = start
        close(pipe, written(tmp_path, state, **options), lora)
    options["unet.init_lora_weights"] = "pissa"
    refused(pipe, written(tmp_path, state, **options), "init_lora_weights='pissa'.*plain LoRA")
    folder = tmp_path / "peft"
    folder.mkdir()
    bare = {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in state.items()}
    save_file(bare, folder / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 2, "init_lora_weights": "pissa_niter_4"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    refused(pipe, folder, "pissa_niter_4")


def test_options_for_text_encoders_are_left_out_with_their_tensors(
    made: Any, tmp_path: Path
) -> None:
    pipe, lora, file, state = made
    with safe_open(file, framework="pt") as opened:
        options = json.loads(opened.metadata()["lora_adapter_metadata"])
    options |= {f"text_encoder.{name.removeprefix('unet.')}": v for name, v in options.items()}
    text = {"text_encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16)}
    with pytest.warns(UserWarning, match="also adapts text encoders"):
        close(pipe, written(tmp_path, {**state, **text}, **options), lora)


def test_the_strength_is_the_checkpoints(made: Any) -> None:
    pipe, lora, file, _ = made
    expected = with_denoiser(pipe, fused(pipe, lora, 0.25), **arguments("sd"))
    found = drawn(pipe, "sd", {"tuned": Checkpoint(file, weight=0.25)})[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def test_reading_takes_memory_for_the_lora_only(made: Any) -> None:
    """The layers hold the file's tensors, in the base's dtypes, and nothing of the base."""
    pipe, _, file, state = made
    pipe.unet.to(torch.bfloat16)
    tuned = load(pipe, file)
    assert tuned.lora is not None
    weights = [w for layer in tuned.lora.layers.values() for w in layer.parameters()]
    assert sum(w.numel() for w in weights) == sum(value.numel() for value in state.values())
    assert {w.dtype for w in weights} == {torch.bfloat16}
    assert not any(w.requires_grad for w in weights)
