"""Whole denoisers from files: what is loaded, in what precision, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, build, redness
from safetensors.torch import load_file, save_file
from torch import nn
from tuned_pairs import component, drawn, twin, with_denoiser

import steer
from steer.core.errors import CheckpointError, UnsupportedPipelineError
from steer.driver.denoisers.checkpoints import Checkpoint, Tuned, load
from steer.methods import BestOfN
from steer.pipeline.guided import guided


FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def weights(folder: Path) -> Path:
    return next(folder.rglob("diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_a_denoiser_equals_the_module(family: str, tmp_path: Path) -> None:
    pipe = build(family)
    module: Any = twin(pipe)
    name = component(pipe)
    module.save_pretrained(tmp_path / name)
    expected = with_denoiser(pipe, module, **arguments(family))
    for source in (tmp_path, tmp_path / name, weights(tmp_path), str(tmp_path)):
        tuned = load(pipe, source)
        assert tuned.kind == "denoiser" and not tuned.module.training
        assert torch.equal(drawn(pipe, family, {"tuned": tuned})[0], expected)
    assert torch.equal(drawn(pipe, family, {"tuned": str(tmp_path)})[0], expected)
    assert drawn(pipe, family, {"tuned": tmp_path})[1].denoiser == str(tmp_path)


def test_of_a_whole_pipeline_only_the_denoiser_is_taken(tmp_path: Path) -> None:
    pipe, other = build("sd"), build("sd")
    other.unet = twin(other)
    other.vae = other.vae.half()
    other.scheduler.register_to_config(prediction_type="v_prediction")
    other.save_pretrained(tmp_path)
    expected = with_denoiser(pipe, other.unet, **arguments("sd"))
    before = {name: id(part) for name, part in pipe.components.items()}
    assert torch.equal(drawn(pipe, "sd", {"tuned": tmp_path})[0], expected)
    assert {name: id(part) for name, part in pipe.components.items()} == before


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    pipe = build("sd")
    module: Any = twin(pipe)
    module.save_pretrained(tmp_path / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    expected = with_denoiser(pipe, module, **arguments("sd"))
    assert torch.equal(drawn(pipe, "sd", {"tuned": tmp_path})[0], expected)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    module: Any = twin(build("sd"))
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    first, last = [sorted(tmp_path.glob("*.safetensors"))[k] for k in (0, -1)]
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: value + 1}, last)
    with pytest.raises(CheckpointError) as caught:
        load(build("sd"), tmp_path)
    assert all(repr(str(what)) in str(caught.value) for what in (name, first, last))
    assert "\n" not in str(caught.value)


def test_precision_is_the_bases_tensor_by_tensor(tmp_path: Path) -> None:
    pipe = build("sd", dtype=torch.bfloat16)
    pipe.unet.conv_in.float()  # as models keep some layers in float32
    module: Any = twin(build("sd"))
    module.save_pretrained(tmp_path)
    tuned = load(pipe, tmp_path).module
    for name, weight in tuned.named_parameters():
        assert weight.dtype == pipe.unet.get_parameter(name).dtype
        torch.testing.assert_close(
            weight, module.get_parameter(name).to(weight.dtype), rtol=0, atol=0
        )
    assert not any(weight.requires_grad for weight in tuned.parameters())


def test_the_checkpoints_own_configuration_counts(tmp_path: Path) -> None:
    """Heads leave no trace in shapes; a checkpoint with others is run with its own."""
    pipe = build("sd")
    module = twin(pipe)
    other = type(pipe.unet).from_config({**pipe.unet.config, "attention_head_dim": 2})
    other.load_state_dict(module.state_dict())
    other.eval().save_pretrained(tmp_path)
    expected = with_denoiser(pipe, other, **arguments("sd"))
    assert not torch.equal(expected, with_denoiser(pipe, module, **arguments("sd")))
    assert torch.equal(drawn(pipe, "sd", {"tuned": tmp_path})[0], expected)


def test_handles_are_passed_on_without_loading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build("sd")
    module: Any = twin(pipe)
    module.save_pretrained(tmp_path)
    tuned = load(pipe, tmp_path)
    assert len(tuned.fingerprint) == 12 and tuned.fingerprint in repr(tuned)
    assert tuned.fingerprint == load(pipe, module).fingerprint
    monkeypatch.setattr("steer.driver.denoisers.checkpoints.loading._read", None)
    for blend in (None, steer.RLG(2.0), steer.denoisers.SwitchAt(0.5)):
        guided(pipe, redness, method=BestOfN(1), tuned=tuned, blend=blend)(**arguments("sd"))


def test_modules_go_where_the_pipeline_is_and_offloaded_ones_come_back() -> None:
    import accelerate

    pipe = build("sd")
    tuned = twin(pipe)
    expected, _ = drawn(pipe, "sd", {"tuned": tuned, "blend": "RLG(1.5)"})
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    assert next(pipe.unet.parameters()).device.type == "meta"
    found, _ = drawn(pipe, "sd", {"tuned": load(pipe, tuned), "blend": "RLG(1.5)"})
    assert torch.equal(found, expected)
    assert next(tuned.parameters()).device.type == "cpu"


def test_another_architecture_is_refused_with_the_first_tensors(tmp_path: Path) -> None:
    wide, narrow = build("sdxl"), build("sd")
    module: Any = twin(wide)
    module.save_pretrained(tmp_path / "xl")
    words = (
        r"tuned='.*xl' does not fit the pipeline's UNet2DConditionModel: .*of another shape "
        r"\(\S+ is \(.*\), and \(.*\) in the base.*seems made for a UNet with text features of "
        r"width 32, and the base is a UNet with text features of width 16"
    )
    with pytest.raises(CheckpointError, match=words):
        load(narrow, tmp_path / "xl")
    with pytest.raises(CheckpointError, match=r"does not fit.*of another shape"):
        load(narrow, module)
    flux: Any = twin(build("flux"))
    flux.save_pretrained(tmp_path / "flux")
    with pytest.raises(CheckpointError, match="is a FluxTransformer2DModel, and the pipeline's"):
        load(narrow, tmp_path / "flux")
    (tmp_path / "flux" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing .*unexpected .*seems made for Flux"):
        load(narrow, tmp_path / "flux")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    pipe = build("sd")
    module: Any = twin(pipe)
    module.save_pretrained(tmp_path)
    file = weights(tmp_path)
    state = load_file(file)
    save_file({**state, "conv_in.weight": state["conv_in.weight"] * torch.inf}, file)
    with pytest.raises(CheckpointError, match=r"1 tensors hold numbers .*\(conv_in.weight\)"):
        load(pipe, tmp_path)
    save_file({name: value for name, value in state.items() if name != "conv_in.bias"}, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(conv_in.bias\)"):
        load(pipe, tmp_path)
    save_file({**state, "more.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(more.weight\)"):
        load(pipe, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="configuration"):
        load(pipe, tmp_path)
    with torch.no_grad():
        module.conv_in.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        load(pipe, module)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"block_out_channels": "x"}', '{"cross_attention_dim": "wide"}']
)
def test_a_broken_configuration_is_named(tmp_path: Path, content: str) -> None:
    pipe = build("sd")
    twin(pipe).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(pipe, tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    pipe = build("sd")
    twin(pipe).save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(pipe, tmp_path)


def test_weights_too_large_for_the_bases_precision_are_named(tmp_path: Path) -> None:
    pipe = build("sd", dtype=torch.float16)
    module: Any = twin(build("sd"))
    with torch.no_grad():
        module.conv_in.weight[0] = 1e5
    module.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"1 tensors .*not finite \(conv_in\.weight\)"):
        load(pipe, tmp_path)


def test_modules_in_another_precision_are_refused() -> None:
    pipe = build("sd")
    with pytest.raises(
        CheckpointError, match=r"is in torch.float16, and pipe.unet in torch.float32"
    ):
        load(pipe, twin(pipe).half())


def test_pickles_are_refused_and_convert_is_the_way_out(tmp_path: Path) -> None:
    from steer.jobs.convert import convert

    pipe = build("sd")
    module = twin(pipe)
    (tmp_path / "unet").mkdir()
    pickle = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    torch.save(module.state_dict(), pickle)
    with pytest.raises(CheckpointError, match="steer convert any") as caught:
        load(pipe, tmp_path)
    said = str(caught.value).split("`")[1].split()
    assert said[:3] == ["steer", "convert", "any"]
    convert(tmp_path / said[3], tmp_path / said[4])
    expected = with_denoiser(pipe, module, **arguments("sd"))
    assert torch.equal(drawn(pipe, "sd", {"tuned": tmp_path})[0], expected)


class Odd(nn.Module):
    """A denoiser that no configuration builds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Linear(2, 2)


def test_denoisers_without_a_configuration_take_modules_only(tmp_path: Path) -> None:
    pipe: Any = build("sd")
    object.__setattr__(pipe, "unet", Odd())
    save_file(Odd().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedPipelineError, match="Odd is not built from a configuration"):
        load(pipe, tmp_path)
    assert isinstance(load(pipe, Odd()), Tuned)


def test_an_image_adapter_on_the_base_is_refused(tmp_path: Path) -> None:
    pipe = build("sd")
    module: Any = twin(pipe)
    module.save_pretrained(tmp_path)
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(UnsupportedPipelineError, match="unload_ip_adapter"):
        load(pipe, tmp_path)


def test_checkpoints_are_found_by_subfolder_and_file(tmp_path: Path) -> None:
    pipe = build("sd")
    for number, name in ((1, "unet_win"), (2, "unet_lose")):
        module: Any = twin(pipe, number)
        module.save_pretrained(tmp_path / name)
    lose = Checkpoint(tmp_path, subfolder="unet_lose")
    assert load(pipe, lose).fingerprint == load(pipe, twin(pipe, 2)).fingerprint
    assert load(pipe, lose).name == f"{tmp_path}/unet_lose"
    assert json.loads((tmp_path / "unet_win" / "config.json").read_text())["in_channels"] == 4
