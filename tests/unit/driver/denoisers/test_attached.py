"""A tuned LoRA lives during a call only, and the user's own adapters stay the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from families import arguments, build, redness
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tuned_pairs import adapted, brightness, component, drawn, fused, save_lora, twin, with_denoiser

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers.attached import Switch
from steer.driver.denoisers.checkpoints import load
from steer.methods import BestOfN, NoiseOptimization
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


MINE = {"weight_name": "pytorch_lora_weights.safetensors", "adapter_name": "mine"}


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def plain(pipe: Any) -> Tensor:
    return pipe(**arguments("sd")).images


def files(tmp_path: Path) -> tuple[Path, Path, Any, Any]:
    """A tuned LoRA's file, the folder of another one of the user's, and both."""
    pipe = build("sd")
    config, tuned = adapted(pipe, seed=6)
    _, mine = adapted(pipe, seed=5)
    file = save_lora(pipe, config, tuned, tmp_path / "tuned")
    save_lora(pipe, config, mine, tmp_path / "mine")
    return file, tmp_path / "mine", tuned, mine


def seen(pipe: Any) -> dict[str, Any]:
    """All of a denoiser that a user can see."""
    module = getattr(pipe, component(pipe))
    return {
        "modules": [(name, type(part)) for name, part in module.named_modules()],
        "weights": {name: id(value) for name, value in module.named_parameters()},
        "training": {name: value.requires_grad for name, value in module.named_parameters()},
        "state": sorted(module.state_dict()),
        "attributes": {name: sorted(part.__dict__) for name, part in module.named_modules()},
        "configs": sorted(getattr(module, "peft_config", {})),
    }


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_nothing_is_left_on_the_pipeline(family: str, tmp_path: Path) -> None:
    pipe = build(family)
    config, lora = adapted(pipe)
    file = save_lora(pipe, config, lora, tmp_path)
    image = pipe(**arguments(family)).images
    before = seen(pipe)
    assert any(before["training"].values())
    for blend in (None, "RLG(2.0)", "SwitchAt(0.5)"):
        steered = guided(pipe, brightness, method=BestOfN(2), tuned=file, blend=blend)
        assert seen(pipe) == before
        steered(**arguments(family))
        assert seen(pipe) == before
        assert torch.equal(pipe(**arguments(family)).images, image)
    pipe.save_pretrained(tmp_path / "saved")
    again = type(pipe).from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    close(again(**arguments(family)).images, image)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_errors_take_the_lora_off(error: type[BaseException], tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    pipe = build("sd")
    before, image = seen(pipe), plain(pipe)

    def failing(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise error("enough")

    with pytest.raises(error, match="enough"):
        guided(pipe, failing, method=BestOfN(2), tuned=file)(**arguments("sd"))
    assert seen(pipe) == before

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise error("inside")

    handle = pipe.unet.mid_block.register_forward_hook(stop)
    steered = guided(pipe, redness, method=BestOfN(1), tuned=file, blend="RLG(2.0)")
    with pytest.raises(error, match="inside"):
        steered(**arguments("sd"))
    handle.remove()
    assert seen(pipe) == before and torch.equal(plain(pipe), image)


def test_the_users_switches_are_the_users(tmp_path: Path) -> None:
    """Loaded, scaled, disabled, enabled and unloaded after `guided`: as beside a plain call."""
    file, mine, *_ = files(tmp_path)
    pipe = build("sd")
    base = plain(pipe)
    steered = guided(pipe, brightness, method=BestOfN(1), tuned=file)
    blended = guided(pipe, brightness, method=BestOfN(1), tuned=file, blend="RLG(0)")

    def now(model: Any) -> Tensor:
        return model(**arguments("sd")).images

    def expected(*given: float) -> tuple[Tensor, Tensor]:
        """Plain and tuned images of a pipeline to which the user's LoRA is given first."""
        other = build("sd")
        if given:
            other.load_lora_weights(mine, **MINE)
            other.set_adapters(["mine"], [given[0]])
        image = plain(other)
        return image, drawn(other, "sd", {"tuned": file})[0]

    def check(*given: float) -> None:
        wanted = expected(*given)
        state = seen(pipe)
        for _ in range(2):
            assert torch.equal(plain(pipe), wanted[0])
            assert torch.equal(now(steered), wanted[1])
            assert torch.equal(now(blended), wanted[0])
        assert seen(pipe) == state

    check()
    pipe.load_lora_weights(mine, **MINE)
    assert not torch.allclose(plain(pipe), base, atol=0.05)
    check(1.0)
    pipe.set_adapters(["mine"], [0.4])
    check(0.4)
    pipe.disable_lora()
    check()
    pipe.enable_lora()
    check(0.4)
    pipe.unload_lora_weights()
    assert torch.equal(plain(pipe), base)
    check()
    pipe.enable_lora()
    check()


def test_a_whole_denoiser_beside_the_users_adapters_is_refused(tmp_path: Path) -> None:
    _, mine, _, lora = files(tmp_path)
    pipe = build("sd")
    other, both = twin(pipe), None
    steered = guided(pipe, redness, method=BestOfN(1), tuned=other)
    pipe.load_lora_weights(mine, **MINE)
    with pytest.raises(UnsupportedPipelineError, match=r"adapters of its own \(mine\).*lacks"):
        steered(**arguments("sd"))
    pipe.disable_lora()
    expected = with_denoiser(build("sd"), other, **arguments("sd"))
    assert torch.equal(steered(**arguments("sd")).images, expected)
    pipe.enable_lora()
    both = build("sd")
    both.unet = twin(both)
    expected = with_denoiser(both, fused(both, lora), **arguments("sd"))
    both.load_lora_weights(mine, **MINE)
    close(drawn(pipe, "sd", {"tuned": both.unet})[0], expected)


def test_adapters_of_any_kind_on_the_base_do_not_hide_its_weights(tmp_path: Path) -> None:
    """A whole checkpoint is compared with the base's own tensors, whatever peft named the rest."""
    from peft import LoHaConfig, inject_adapter_in_model

    pipe = build("sd")
    module: Any = twin(pipe)
    module.save_pretrained(tmp_path)
    inject_adapter_in_model(LoHaConfig(r=2, target_modules=["to_q"]), pipe.unet)
    assert torch.equal(load(pipe, tmp_path).module.conv_in.weight, module.conv_in.weight)
    assert load(pipe, module).module is module


def test_a_calls_lora_scale_is_for_the_tuned_lora_too(tmp_path: Path) -> None:
    file, _, lora, _ = files(tmp_path)
    pipe = build("sd")
    expected = with_denoiser(pipe, fused(pipe, lora, 0.3), **arguments("sd"))
    scaled = {"cross_attention_kwargs": {"scale": 0.3}}
    close(drawn(pipe, "sd", {"tuned": file}, **scaled)[0], expected)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="torch 2.6 compiles no layer around another one (docs/checkpoints.md)",
)
@pytest.mark.sample(0)
@pytest.mark.parametrize("wrapped", [True, False])
def test_compiled_denoisers_see_the_lora_come_and_go(wrapped: bool, tmp_path: Path) -> None:
    file, mine, *_ = files(tmp_path)
    expected = {
        (path, blend): drawn(build("sd"), "sd", {"tuned": path, "blend": blend})[0]
        for path in (file, mine)
        for blend in (None, "RLG(1.5)")
    }
    torch.compiler.reset()
    pipe, graphs = build("sd"), []

    def backend(graph: Any, inputs: Any, graphs: list[Any] = graphs) -> Any:
        graphs.append(graph)
        return graph.forward

    if wrapped:
        pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    else:
        pipe.unet.compile(backend=backend, fullgraph=True)
    image = plain(pipe)
    counts = []
    for _ in range(2):
        for (path, blend), wanted in expected.items():
            close(drawn(pipe, "sd", {"tuned": path, "blend": blend})[0], wanted)
        counts.append(len(graphs))
    assert torch.equal(plain(pipe), image)
    assert counts[0] == counts[1] == len(graphs)
    torch.compiler.reset()


def test_offloaded_layers_and_another_dtype(tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    pipe = build("sd")
    steered = guided(pipe, brightness, method=BestOfN(1), tuned=file, blend="RLG(1.5)")
    expected = steered(**arguments("sd")).images
    pipe.to(torch.float64)
    found = steered(**arguments("sd")).images
    assert found.dtype == torch.float64
    pipe.to(torch.float32)
    close(steered(**arguments("sd")).images, expected)
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    hooks = {name: part.forward for name, part in pipe.unet.named_modules()}
    assert torch.equal(steered(**arguments("sd")).images, expected)
    assert torch.equal(drawn(pipe, "sd", {"tuned": file, "blend": "RLG(1.5)"})[0], expected)
    assert {name: part.forward for name, part in pipe.unet.named_modules()} == hooks


def test_a_dora_needs_the_bases_weights(tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    state = load_file(file)
    for name, value in dict(state).items():
        if ".lora_B." in name:
            state[name.replace("lora_B.weight", "lora_magnitude_vector")] = value.norm(dim=1) + 1.0
    save_file(state, tmp_path / "dora.safetensors", {"format": "pt"})
    pipe = build("sd")
    steered = guided(pipe, brightness, method=BestOfN(1), tuned=tmp_path / "dora.safetensors")
    found = steered(**arguments("sd")).images
    expected = with_denoiser(pipe, magnified(pipe, state), **arguments("sd"))
    close(found, expected)
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    with pytest.raises(UnsupportedPipelineError, match=r"is a DoRA.*offloaded in parts"):
        steered(**arguments("sd"))


def magnified(pipe: Any, state: dict[str, Tensor]) -> nn.Module:
    """`m (W + B A) / |W + B A|`, row by row (arXiv:2402.09353)."""
    module = twin(pipe, size=0.0)
    layers = dict(module.named_modules())
    for name, magnitude in state.items():
        place, _, kind = name.partition(".lora_")
        if kind == "magnitude_vector":
            down, up = (state[f"{place}.lora_{side}.weight"] for side in "AB")
            weight: Any = layers[place.removeprefix("unet.")].weight
            changed = weight + up @ down
            weight.copy_(magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True))
    return module


def test_layers_that_are_run_again_in_the_backward_pass(tmp_path: Path) -> None:
    """Gradient checkpointing evaluates a layer once more, with whatever is on then."""
    file, *_ = files(tmp_path)
    reward = FunctionReward(redness, differentiable=True)
    method = NoiseOptimization(iterations=2, through=2)

    def rewards(pipe: Any, blend: str | None) -> list[float]:
        steered = guided(pipe, reward, method=method, tuned=file, blend=blend)
        return steered(**arguments("sd")).rewards

    pipe, other = build("sd"), build("sd")
    other.unet.enable_gradient_checkpointing()
    other.unet.train()  # diffusers' blocks recompute where gradients are on
    for part in (pipe, other):
        part.unet.requires_grad_(False)
    assert rewards(other, None) == pytest.approx(rewards(pipe, None), abs=1e-5)
    with pytest.raises(UnsupportedPipelineError, match="disable_gradient_checkpointing"):
        rewards(other, "RLG(1.5)")


def test_fused_projections_are_refused(tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    pipe = build("sd")
    steered = guided(pipe, brightness, method=BestOfN(1), tuned=file)
    expected = steered(**arguments("sd")).images
    pipe.fuse_qkv_projections()
    with pytest.raises(UnsupportedPipelineError, match="unfuse_qkv_projections"):
        steered(**arguments("sd"))
    pipe.unfuse_qkv_projections()
    assert torch.equal(steered(**arguments("sd")).images, expected)


def test_a_layer_that_is_gone_is_named(tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    pipe = build("sd")
    steered = guided(pipe, brightness, method=BestOfN(1), tuned=file)
    del pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    with pytest.raises(UnsupportedPipelineError, match=r"has no layer '.*attn1\.to_q' any more"):
        steered(**arguments("sd"))


@contextmanager
def changed(layer: nn.Module, forward: Any) -> Iterator[None]:
    layer.__dict__["forward"] = forward
    yield
    layer.__dict__.pop("forward", None)


def test_a_forward_that_others_replace_meanwhile_stays_theirs(tmp_path: Path) -> None:
    """Offloading hooks come and go within a call; the LoRA goes around what is there then."""
    file, *_ = files(tmp_path)
    pipe = build("sd")
    tuned = load(pipe, file)
    assert tuned.lora is not None
    name, around = next(iter(tuned.lora.layers.items()))
    layer: Any = pipe.unet.get_submodule(name)
    value = torch.randn(2, layer.in_features)
    plain_answer = layer(value)
    with torch.no_grad():
        delta: Any = around
        added = delta.lora_B["steer"](delta.lora_A["steer"](value)) * delta.scaling["steer"]
    switch = Switch(pipe.unet)
    with changed(layer, lambda x: type(layer).forward(layer, x) + 1):
        switch({tuned.lora: 1.0})
        close(layer(value), plain_answer + 1 + added)
        hooked = lambda x: type(layer).forward(layer, x) + 2  # noqa: E731
        layer.__dict__["forward"] = hooked
        switch({tuned.lora: 1.0})
        close(layer(value), plain_answer + 2 + added)
        layer.__dict__["forward"] = hooked
        switch.off()
        assert layer.__dict__["forward"] is hooked
    assert torch.equal(layer(value), plain_answer)


def test_two_loras_on_one_layer_come_off_in_order(tmp_path: Path) -> None:
    file, mine, *_ = files(tmp_path)
    pipe = build("sd")
    before = seen(pipe)
    loras = [load(pipe, path).lora for path in (file, mine)]
    switch = Switch(pipe.unet)
    for on in ([0], [0, 1], [1, 0], [1], []):
        switch({loras[i]: 0.5 for i in on})  # pyright: ignore[reportArgumentType]
    assert seen(pipe) == before


def test_the_report_says_what_answered(tmp_path: Path) -> None:
    file, *_ = files(tmp_path)
    pipe = build("sd")
    steered = guided(pipe, redness, method=BestOfN(1), tuned=file)
    base, first = plain(pipe), steered(**arguments("sd"))
    pipe.unload_lora_weights()
    again = steered(**arguments("sd"))
    assert torch.equal(first.images, again.images) and not torch.equal(again.images, base)
    assert again.report.denoiser == str(file) and json.dumps(again.report.denoiser)


def test_one_file_in_both_roles_is_summed(tmp_path: Path) -> None:
    """merge=0 adds (tuned - base) to the negative: of one LoRA, twice its strength."""
    file, _, lora, _ = files(tmp_path)
    pipe = build("sd")
    tuned = load(pipe, file)
    whole, double = fused(pipe, lora), fused(pipe, lora, 2.0)
    more = {"guidance_scale": 4.0}
    blend = steer.denoisers.NegativeGuidance(tuned, 0.0)
    found, _ = drawn(pipe, "sd", {"tuned": tuned, "blend": blend}, **more)
    blend = steer.denoisers.NegativeGuidance(double, 1.0)
    close(found, drawn(pipe, "sd", {"tuned": whole, "blend": blend}, **more)[0])
