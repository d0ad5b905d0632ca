"""LoRAs as tuned models: one copy of the weights, two arms, against weights fused by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, build, redness
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tuned_pairs import adapted, component, drawn, fused, save_lora, twin, with_denoiser

import steer
from steer.core.errors import CheckpointError
from steer.driver.denoisers.checkpoints import Tuned, load
from steer.driver.denoisers.checkpoints.peft_layers import tuner_layers
from steer.methods import BestOfN, NoiseOptimization
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_on_is_tuned_and_off_is_base(family: str, tmp_path: Path) -> None:
    pipe = build(family)
    base = pipe(**arguments(family)).images
    config, lora = adapted(pipe)
    file, whole = save_lora(pipe, config, lora, tmp_path), fused(pipe, lora)
    tuned = load(pipe, file)
    assert tuned.kind == "lora" and tuned.module is getattr(pipe, component(pipe))

    alone = with_denoiser(pipe, whole, **arguments(family))
    assert not torch.allclose(alone, base, atol=0.05)
    close(drawn(pipe, family, {"tuned": tuned})[0], alone)
    assert torch.equal(drawn(pipe, family, {"tuned": tuned, "blend": "RLG(0)"})[0], base)
    assert torch.equal(pipe(**arguments(family)).images, base)  # off between calls
    blended, report = drawn(pipe, family, {"tuned": tuned, "blend": steer.RLG(1.8)})
    close(blended, drawn(pipe, family, {"tuned": whole, "blend": steer.RLG(1.8)})[0])
    assert report.ledger.denoiser_rows == 8
    switched = drawn(pipe, family, {"tuned": tuned, "blend": steer.denoisers.SwitchAt(0.5)})[0]
    close(
        switched, drawn(pipe, family, {"tuned": whole, "blend": steer.denoisers.SwitchAt(0.5)})[0]
    )


def test_a_lora_weighs_what_it_is_told(tmp_path: Path) -> None:
    pipe = build("sd")
    config, lora = adapted(pipe)
    file = save_lora(pipe, config, lora, tmp_path)
    first = load(pipe, file)
    again = load(pipe, steer.denoisers.Checkpoint(tmp_path, weight=0.4))
    assert first.fingerprint == again.fingerprint
    for tuned, weight in ((first, 1.0), (again, 0.4), (first, 1.0)):
        expected = with_denoiser(pipe, fused_plain(lora, weight), **arguments("sd"))
        close(drawn(pipe, "sd", {"tuned": tuned})[0], expected)


def fused_plain(lora: Any, weight: float) -> Any:
    """`fused` on a fresh pipeline of the same seed, whose denoiser carries no adapter."""
    return fused(build("sd"), lora, weight)


def rename(state: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name.replace(old, new, 1): value.contiguous() for name, value in state.items()}


def test_files_as_peft_and_kohya_and_modules_write_them(tmp_path: Path) -> None:
    pipe = build("sd")
    config, lora = adapted(pipe)
    expected = with_denoiser(pipe, fused(pipe, lora), **arguments("sd"))
    plain = get_peft_model_state_dict(lora)

    peft = tmp_path / "peft"
    peft.mkdir()
    save_file(
        {f"base_model.model.{k}": v for k, v in plain.items()}, peft / "adapter_model.safetensors"
    )
    config.target_modules = sorted(config.target_modules)
    (peft / "adapter_config.json").write_text(json.dumps(config.to_dict(), default=str))
    bare = tmp_path / "bare"
    lora.save_lora_adapter(bare)

    kohya = tmp_path / "kohya.safetensors"
    state: dict[str, Any] = {}
    for name, value in plain.items():
        place, _, side = name.removesuffix(".weight").rpartition(".lora_")
        stem = "lora_unet_" + place.replace(".", "_")
        state[f"{stem}.lora_{'down' if side == 'A' else 'up'}.weight"] = value.contiguous()
        state[f"{stem}.alpha"] = torch.tensor(6.0)
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(2, 16)
    save_file(state, kohya)

    close(drawn(pipe, "sd", {"tuned": peft})[0], expected)
    close(drawn(pipe, "sd", {"tuned": bare})[0], expected)
    with pytest.warns(UserWarning, match=r"also adapts text encoders \(1 tensors\)"):
        tuned = load(pipe, kohya)
    close(drawn(pipe, "sd", {"tuned": tuned})[0], expected)


def test_the_users_own_adapters_stay_on_in_both_arms(tmp_path: Path) -> None:
    pipe = build("sd")
    config, style = adapted(pipe, seed=5)
    styled = fused(pipe, style)
    config, lora = adapted(pipe, seed=6)
    both = fused_on(styled, lora)
    file = save_lora(pipe, config, style, tmp_path / "style")
    pipe.load_lora_weights(file, weight_name=file.name, adapter_name="style")
    before = pipe(**arguments("sd")).images
    tuned = load(pipe, save_lora(pipe, config, lora, tmp_path / "tuned"))
    assert torch.equal(pipe(**arguments("sd")).images, before)
    assert pipe.get_active_adapters() == ["style"]
    given = {"tuned": tuned, "blend": steer.RLG(1.5)}
    expected = drawn(styled_pipe(styled), "sd", {"tuned": both, "blend": steer.RLG(1.5)})[0]
    close(drawn(pipe, "sd", given)[0], expected)
    assert torch.equal(drawn(pipe, "sd", {"tuned": tuned, "blend": "RLG(0)"})[0], before)
    assert pipe.get_active_adapters() == ["style"]
    pipe.fuse_lora(adapter_names=["style"])
    close(drawn(pipe, "sd", given)[0], expected)
    close(drawn(pipe, "sd", given | {"tuned": tmp_path / "tuned"})[0], expected)
    close(pipe(**arguments("sd")).images, before)


def fused_on(module: Any, lora: Any) -> Any:
    pipe = styled_pipe(module)
    return fused(pipe, lora)


def styled_pipe(module: Any) -> Any:
    pipe = build("sd")
    pipe.unet = module
    return pipe


def test_two_loras_merge_by_being_on_together(tmp_path: Path) -> None:
    """negative + (1 - merge) * (tuned - base), as LoRAs and as whole models."""
    pipe = build("sd")
    config, good = adapted(pipe, seed=3)
    _, bad = adapted(pipe, seed=4)
    files = [save_lora(pipe, config, x, tmp_path / n) for x, n in ((good, "good"), (bad, "bad"))]
    wholes = [fused(pipe, lora) for lora in (good, bad)]
    more = {"guidance_scale": 4.0}
    for merge in (0.0, 0.3, 1.0):
        blends = [steer.denoisers.NegativeGuidance(model, merge) for model in (files[1], wholes[1])]
        found, _ = drawn(pipe, "sd", {"tuned": files[0], "blend": blends[0]}, **more)
        other = build("sd")
        expected, _ = drawn(other, "sd", {"tuned": wholes[0], "blend": blends[1]}, **more)
        close(found, expected)
    with pytest.raises(ValueError, match=r"merge=0\.3: .* is a LoRA and"):
        guided(
            pipe, redness, tuned=wholes[0], blend=steer.denoisers.NegativeGuidance(files[1], 0.3)
        )
    guided(pipe, redness, tuned=wholes[0], blend=steer.denoisers.NegativeGuidance(files[1], 1.0))


def test_gradients_leave_the_loras_weights_alone(tmp_path: Path) -> None:
    pipe = build("sd")
    config, lora = adapted(pipe)
    tuned = load(pipe, save_lora(pipe, config, lora, tmp_path))
    flags = {name: weight.requires_grad for name, weight in pipe.unet.named_parameters()}
    method = NoiseOptimization(iterations=2, through=2)
    reward = FunctionReward(redness, differentiable=True)
    steered = guided(pipe, reward, method=method, tuned=tuned, blend=steer.RLG(1.5))
    out = steered(**arguments("sd"))
    assert out.report.ledger.backward_rows > 0
    for name, weight in pipe.unet.named_parameters():
        assert weight.grad is None and weight.requires_grad == flags[name]
    assert tuned.lora is not None
    for layer in tuned.lora.layers.values():
        assert all(w.grad is None and not w.requires_grad for w in layer.parameters())


def test_a_lora_that_does_not_fit_is_named(tmp_path: Path) -> None:
    narrow, wide = build("sd"), build("sdxl")
    config, lora = adapted(wide)
    file = save_lora(wide, config, lora, tmp_path / "xl")
    with pytest.raises(CheckpointError, match=r"LoRA for another base: .*lora_.*has"):
        load(narrow, file)
    assert not tuner_layers(narrow.unet)
    flux = build("flux")
    config, lora = adapted(flux)
    file = save_lora(flux, config, lora, tmp_path / "flux")
    with pytest.raises(CheckpointError, match=r"adapts no layer of the pipeline's unet.*Flux"):
        load(narrow, file)


def test_bad_lora_files_are_named(tmp_path: Path) -> None:
    pipe = build("sd")
    config, lora = adapted(pipe)
    file = save_lora(pipe, config, lora, tmp_path)
    state = load_file(file)

    def written(state: dict[str, Any], name: str) -> Path:
        save_file(state, tmp_path / name)
        return tmp_path / name

    name = next(iter(state))
    broken = written({**state, name: state[name] * torch.nan}, "nan.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors hold numbers that are not finite"):
        load(pipe, broken)
    text = written(rename(state, "unet.", "text_encoder."), "text.safetensors")
    with (
        pytest.raises(CheckpointError, match="adapts text encoders only"),
        pytest.warns(UserWarning, match="also adapts text encoders"),
    ):
        load(pipe, text)
    cut = {name: value[:, :3].contiguous() for name, value in state.items()}
    short = written(cut, "cut.safetensors")
    with pytest.raises(CheckpointError, match="LoRA for another base"):
        load(pipe, short)
    assert not tuner_layers(pipe.unet)


def test_a_handle_belongs_to_its_pipeline(tmp_path: Path) -> None:
    pipe, other = build("sd"), build("sd")
    config, lora = adapted(pipe)
    tuned = load(pipe, save_lora(pipe, config, lora, tmp_path))
    with pytest.raises(ValueError, match="loaded for another pipeline"):
        load(other, tuned)
    assert load(pipe, tuned) is tuned
    whole = load(pipe, twin(other))
    assert isinstance(load(other, whole), Tuned)
    best = guided(other, redness, method=BestOfN(2), tuned=whole)(**arguments("sd"))
    assert best.report.denoiser == "given UNet2DConditionModel"
