"""Blends in whole pipelines: identities bit for bit, formulas against slow references, books."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from families import arguments, build, redness, seeded, shared
from torch import Tensor, nn
from tuned_pairs import Reference, component, drawn, pictures, twin, with_denoiser

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.methods import SMC, BestOfN, Prune
from steer.pipeline.guided import guided


FAMILIES = ["sd", "sdxl", "sd3", "flux", "pixart", "sana", "wan"]
CFG = {"guidance_scale": 4.0}


class Rows:
    """Rows that denoisers saw, counted at their first layer, independently of the ledger."""

    def __init__(self, *modules: Any) -> None:
        self.seen = 0
        for module in modules:
            first = getattr(module, "conv_in", None) or getattr(module, "x_embedder", None)
            (first or module.pos_embed).register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen += len(output)


@pytest.mark.parametrize("family", FAMILIES)
def test_identities_bit_for_bit(family: str) -> None:
    pipe = shared(family)
    tuned, call = twin(pipe), arguments(family)
    base, alone = pictures(pipe(**call)), with_denoiser(pipe, tuned, **arguments(family))
    assert not torch.equal(base, alone)
    for blend in (steer.RLG(0.0), steer.denoisers.SwitchAt(1)):
        assert torch.equal(drawn(pipe, family, {"tuned": tuned, "blend": blend})[0], base)
    for blend in (
        None,
        "RLG(1.0)",
        steer.denoisers.SwitchAt(0),
        steer.denoisers.PreferenceGuidance(tuned, 0.0),
    ):
        images, report = drawn(pipe, family, {"tuned": tuned, "blend": blend})
        expected = base if isinstance(blend, steer.denoisers.PreferenceGuidance) else alone
        assert torch.equal(images, expected)
        assert report.ledger.denoiser_rows == 4  # one model, four steps
    assert torch.equal(pictures(pipe(**arguments(family))), base)
    assert not {"forward", "cache_context"} & set(vars(getattr(pipe, component(pipe))))


@pytest.mark.parametrize("family", FAMILIES[:5])
@pytest.mark.parametrize("scale", [-0.5, 2.5])
def test_rlg_is_the_weighted_output(family: str, scale: float) -> None:
    pipe = shared(family)
    base, tuned = getattr(pipe, component(pipe)), twin(pipe)

    def answer(args: Any, kwargs: Any) -> Tensor:
        ours, theirs = base(*args, **kwargs)[0], tuned(*args, **kwargs)[0]
        return ours + scale * (theirs - ours)

    expected = with_denoiser(pipe, Reference(base, answer), **arguments(family))
    images, report = drawn(pipe, family, {"tuned": tuned, "blend": steer.RLG(scale)})
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-3)
    assert report.ledger.denoiser_rows == 8
    assert report.denoiser == f"RLG(scale={scale}) of base and given {type(tuned).__name__}"


def test_rlg_is_the_blend_of_outputs_guided_one_by_one() -> None:
    """v = v_base + s (v_tuned - v_base), each after its own classifier-free guidance."""
    pipe, steps, scale = build("sd", "ddim"), 4, 1.8
    base, tuned = pipe.unet, twin(pipe)
    call = arguments("sd", **CFG)
    prompt, null = pipe.encode_prompt("a red circle", "cpu", 1, True)
    x = torch.randn((1, 4, 8, 8), generator=seeded(0))
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            outputs = []
            for model in (base, tuned):
                low, high = (model(x, t, encoder_hidden_states=e).sample for e in (null, prompt))
                outputs.append(low + CFG["guidance_scale"] * (high - low))
            output = outputs[0] + scale * (outputs[1] - outputs[0])
            x = pipe.scheduler.step(output, t, x).prev_sample
    steered = guided(pipe, redness, method=BestOfN(1), tuned=tuned, blend=steer.RLG(scale))
    found = steered(**{**call, "latents": torch.randn((1, 4, 8, 8), generator=seeded(0))}).images
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-3)


def _parted(base: nn.Module, positive: Any, negative: Any, proxy: float = 0.0) -> Reference:
    """The null half of every batch from one model, the prompt's half from another."""

    def answer(args: Any, kwargs: Any) -> Tensor:
        shifted = dict(kwargs)
        for name in ("encoder_hidden_states", "pooled_projections"):
            if name in kwargs:
                shifted[name] = _proxy(kwargs[name], proxy)
        extra = kwargs.get("added_cond_kwargs") or {}
        if "text_embeds" in extra:
            pooled = _proxy(extra["text_embeds"], proxy)
            shifted["added_cond_kwargs"] = {**extra, "text_embeds": pooled}
        high, low = positive(*args, **kwargs)[0], negative(*args, **shifted)[0]
        half = len(high) // 2
        return torch.cat([low[:half], high[half:]])

    return Reference(base, answer)


def _proxy(both: Tensor, alpha: float) -> Tensor:
    null, prompt = both.chunk(2)
    return torch.cat([(1 + alpha) * null - alpha * prompt, prompt])


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart"])
def test_chats_and_negative_guidance_part_the_batch(family: str) -> None:
    pipe = shared(family)
    base = getattr(pipe, component(pipe))
    good, bad = twin(pipe, 1), twin(pipe, 2)
    for blend, proxy in (
        (steer.denoisers.NegativeGuidance(bad, 1), 0.0),
        (steer.denoisers.CHATS(bad, 0.5), 0.5),
    ):
        if proxy and family == "pixart":
            with pytest.raises(UnsupportedPipelineError, match="masks tokens"):
                drawn(pipe, family, {"tuned": good, "blend": blend}, **CFG)
            continue
        expected = with_denoiser(pipe, _parted(base, good, bad, proxy), **arguments(family, **CFG))
        images, report = drawn(pipe, family, {"tuned": good, "blend": blend}, **CFG)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=2e-3)
        assert report.ledger.denoiser_rows == 4
        assert report.ledger.cfg_rows == 2


def test_negative_guidance_from_the_base_and_with_merged_weights() -> None:
    pipe = shared("sd")
    base, good, bad = pipe.unet, twin(pipe, 1), twin(pipe, 2)
    expected = with_denoiser(pipe, _parted(base, base, bad), **arguments("sd", **CFG))
    images, report = drawn(pipe, "sd", {"blend": steer.denoisers.NegativeGuidance(bad)}, **CFG)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=2e-3)
    assert report.denoiser == "NegativeGuidance(...) of base and given UNet2DConditionModel"

    merged = twin(pipe, 2)  # bad + 0.75 (good - base), by hand
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            change = good.get_parameter(name) - base.get_parameter(name)
            weight.add_(0.75 * change)
    expected = with_denoiser(pipe, _parted(base, good, merged), **arguments("sd", **CFG))
    before = {k: v.clone() for k, v in bad.state_dict().items()}
    given = {"tuned": good, "blend": steer.denoisers.NegativeGuidance(bad, merge=0.25)}
    images, _ = drawn(pipe, "sd", given, **CFG)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=2e-3)
    assert all(torch.equal(v, before[k]) for k, v in bad.state_dict().items())


def test_negative_guidance_where_the_null_prompt_has_a_call_of_its_own() -> None:
    """Flux with true_cfg_scale asks twice, and says for which prompt by its cache context."""
    pipe = shared("flux")
    more = {"negative_prompt": "blue square", "true_cfg_scale": 3.0}
    base, good, bad = pipe.transformer, twin(pipe, 1), twin(pipe, 2)
    calls: list[int] = []

    def answer(args: Any, kwargs: Any) -> Tensor:
        calls.append(len(calls))
        model = bad if len(calls) % 2 == 0 else good  # the prompt first, then the null prompt
        return model(*args, **kwargs)[0]

    expected = with_denoiser(pipe, Reference(base, answer), **arguments("flux", **more))
    given = {"tuned": good, "blend": steer.denoisers.NegativeGuidance(bad, merge=1)}
    images, _ = drawn(pipe, "flux", given, **more)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(UnsupportedPipelineError, match="call of its own"):
        drawn(pipe, "flux", {"tuned": good, "blend": steer.denoisers.CHATS(bad)}, **more)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_negative_model_needs_classifier_free_guidance(family: str) -> None:
    pipe = shared(family)
    given = {"tuned": twin(pipe), "blend": steer.denoisers.NegativeGuidance(twin(pipe, 2))}
    with pytest.raises(UnsupportedPipelineError, match="turn classifier-free guidance on"):
        drawn(pipe, family, given, guidance_scale=1.0)
    assert "forward" not in vars(getattr(pipe, component(pipe)))


@pytest.mark.sample
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("method", [BestOfN(4), Prune(4, keep=(2,), at=(0.5,)), SMC(4)])
def test_methods_compose_whatever_the_width_and_rows_are_those_seen(
    method: Any, width: int
) -> None:
    pipe = shared("sd", "euler_a")
    tuned = twin(pipe)
    blend = steer.RLG(steer.denoisers.window(1.5, 0.5, 1.0))  # the tuned model alone, then both

    def run(width: int) -> tuple[Any, int]:
        steered = guided(pipe, redness, method=method, tuned=tuned, blend=blend, lane_width=width)
        handle = Rows(pipe.unet, tuned)
        out = steered(**arguments("sd", output_type="pt", **CFG))
        for module in (pipe.unet, tuned):
            module.conv_in._forward_hooks.clear()
        return out, handle.seen

    out, seen = run(width)
    ledger = out.report.ledger
    assert (ledger.denoiser_rows + ledger.checked_rows) * ledger.cfg_rows == seen
    alone, _ = run(1)
    torch.testing.assert_close(out.images, alone.images, rtol=0, atol=1e-4)
    assert out.report.chosen == alone.report.chosen


def test_two_prompts_and_two_images_each() -> None:
    pipe, blend = shared("sd"), steer.RLG(1.7)
    steered = guided(pipe, redness, method=BestOfN(2), tuned=twin(pipe), blend=blend)
    prompts = ["a red circle", "a blue square"]
    generators = [seeded(i) for i in range(4)]
    both = steered(**arguments("sd", prompt=prompts, num_images_per_prompt=2, generator=generators))
    assert len(both.rewards) == 4
    assert both.report.ledger.denoiser_rows == 2 * 4 * 2 * 2 * 2


def test_compute_counts_plain_calls_of_the_base() -> None:
    pipe = shared("sd")
    tuned = twin(pipe)
    plain = guided(pipe, redness, compute=8)(**arguments("sd"))
    blended = guided(pipe, redness, compute=8, tuned=tuned, blend="RLG(2)")(**arguments("sd"))
    rows = [out.report.ledger.equivalent_rows for out in (plain, blended)]
    assert max(rows) <= 8 * 4
    assert blended.report.method == BestOfN(4) != plain.report.method
    with pytest.raises(ValueError, match="compute=2 or more"):
        guided(pipe, redness, compute=1, tuned=tuned, blend="RLG(2)")(**arguments("sd"))


def test_short_runs_are_planned_for_the_own_weights_alone() -> None:
    """A few-step model tuned through all of its steps may need its last one."""
    pipe = build("sd")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    own = guided(pipe, redness, compute=8)(**arguments("sd")).report.method
    tuned = guided(pipe, redness, compute=8, tuned=twin(pipe))(**arguments("sd")).report.method
    assert isinstance(own, BestOfN) and own.strides is not None
    assert isinstance(tuned, BestOfN) and tuned.strides is None


@pytest.mark.parametrize("moment", ["denoiser", "reward"])
def test_everything_is_put_back_after_an_error(moment: str) -> None:
    pipe = build("sd")
    tuned = twin(pipe).requires_grad_(True)
    own = pipe.unet.forward
    pipe.unet.forward = own  # as hooks of accelerate leave it: an attribute of the instance

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyError(moment)

    if moment == "denoiser":
        tuned.conv_in.register_forward_hook(broken)  # pyright: ignore[reportAttributeAccessIssue]
    reward = broken if moment == "reward" else redness
    steered = guided(pipe, reward, method=BestOfN(2), tuned=tuned, blend=steer.RLG(2.0))
    with pytest.raises(KeyError, match=moment):
        steered(**arguments("sd"))
    assert pipe.unet.__dict__["forward"] is own
    assert "cache_context" not in vars(pipe.unet)
    assert all(weight.requires_grad for weight in tuned.parameters())


def test_compiled_denoisers_run_as_they_were_compiled() -> None:
    """`module.compile()` leaves a callable beside `forward`, which calls go through."""
    pipe, calls = build("sd"), []
    tuned, inner = twin(pipe), pipe.unet._call_impl

    def compiled(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[0]))
        return inner(*args, **kwargs)

    expected, _ = drawn(pipe, "sd", {"tuned": tuned, "blend": steer.RLG(2.0)})
    pipe.unet._compiled_call_impl = compiled
    found, _ = drawn(pipe, "sd", {"tuned": tuned, "blend": steer.RLG(2.0)})
    assert torch.equal(found, expected)
    assert calls == [2] * 4
    assert pipe.unet._compiled_call_impl is compiled


def test_what_cannot_be_blended_is_named() -> None:
    pipe = build("sd")
    tuned = twin(pipe)
    with pytest.raises(ValueError, match="without tuned: it needs a tuned model"):
        guided(pipe, redness, blend=steer.RLG(2.0))
    with pytest.raises(ValueError, match=r"blend=2\.0: give a blend"):
        guided(pipe, redness, tuned=tuned, blend=2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pipeline's own unet"):
        guided(pipe, redness, tuned=pipe.unet)
    steered = guided(pipe, redness, tuned=tuned)
    pipe.unet.image_proj = nn.ModuleList()  # as an IP-Adapter leaves it
    with pytest.raises(UnsupportedPipelineError, match="IP-Adapter"):
        steered(**arguments("sd"))
    del pipe.unet.image_proj
    pipe.unet = twin(pipe, 3)
    with pytest.raises(UnsupportedPipelineError, match="was replaced"):
        steered(**arguments("sd"))


def test_several_denoisers_or_none_are_refused() -> None:
    pipe = build("sd3")
    tuned = twin(pipe)
    pipe.transformer_2 = twin(pipe, 2)  # as Wan 2.2 has, for the low noise levels
    with pytest.raises(UnsupportedPipelineError, match=r"several denoisers \(transformer, trans"):
        guided(pipe, redness, tuned=tuned)

    class Bare:
        def __call__(self) -> None: ...

        class scheduler:
            step = set_timesteps = None

    with pytest.raises(UnsupportedPipelineError, match="neither a unet nor a transformer"):
        guided(Bare(), redness, tuned=tuned)


def test_a_feature_cache_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = build("flux")
    tuned = twin(pipe)
    steered = guided(pipe, redness, method=BestOfN(1), tuned=tuned, blend=steer.RLG(2.0))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UnsupportedPipelineError, match="disable_cache"):
        steered(**arguments("flux"))


def test_where_prompts_have_calls_of_their_own_both_are_blended() -> None:
    """Wan asks for the prompt and the null prompt in turn, and names them by cache context."""
    pipe = shared("wan")
    base, good, bad = pipe.transformer, twin(pipe, 1), twin(pipe, 2)
    calls: list[int] = []

    def answer(args: Any, kwargs: Any) -> Tensor:
        calls.append(len(calls))
        return (bad if len(calls) % 2 == 0 else good)(*args, **kwargs)[0]

    expected = with_denoiser(pipe, Reference(base, answer), **arguments("wan", **CFG))
    given = {"tuned": good, "blend": steer.denoisers.NegativeGuidance(bad, merge=1)}
    images, report = drawn(pipe, "wan", given, **CFG)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-3)
    assert report.ledger.denoiser_rows == 4 and len(calls) == 8
