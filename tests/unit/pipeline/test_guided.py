"""`guided` on whole pipelines: populations, prompts, arguments, and leaving all as it came."""

from __future__ import annotations

import warnings
from typing import Any

import accelerate
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    LCMScheduler,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from families import arguments, build, redness, seeded, shared
from torch import Tensor

from steer.core.seeds import row_seed
from steer.driver.noise import Source
from steer.driver.seeds import call_seeds
from steer.methods import BestOfN, Gate, Prune
from steer.pipeline.estimate import estimate
from steer.pipeline.guided import guided


def latents_of(report: Any, prompt: int = 0) -> list[float]:
    """Final rewards of one prompt by particle."""
    found: dict[int, float] = {}
    for row in report.trace.of("score", prompt):
        if not row["preview"]:
            found |= dict(zip(row["particle"], row["reward"], strict=True))
    return [found[k] for k in sorted(found)]


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", "ddim"),
        ("sd", "euler_a"),
        ("sd", "dpm++2m"),
        ("sd", "sde-dpm++"),
        ("sd", "unipc"),
        ("sdxl", "euler"),
        ("sd3", "flow"),
        ("flux", "flow-dynamic"),
    ],
)
def test_width_does_not_matter(family: str, scheduler: str) -> None:
    pipe = shared(family, scheduler)
    outs = [
        guided(pipe, redness, method=BestOfN(5), lane_width=w)(**arguments(family))
        for w in (1, 2, 4)
    ]
    assert len({out.report.chosen[0] for out in outs}) == 1
    for out in outs[1:]:
        assert torch.allclose(out.images, outs[0].images, atol=2e-4)
        assert latents_of(out.report) == pytest.approx(latents_of(outs[0].report), abs=1e-5)
    plain = pipe(**arguments(family)).images
    from steer.driver.decoding.asked import Asked
    from steer.driver.decoding.decode import decode

    base = redness(decode(pipe, plain, asked=Asked({"height": 16, "width": 16})), [""])
    assert outs[2].report.base_reward[0] == pytest.approx(float(base), abs=1e-5)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_winner_is_the_plain_call_with_its_noise(family: str) -> None:
    pipe = shared(family)
    seen: list[Tensor] = []

    class Watch(BestOfN):
        def __call__(self, ctx: Any, start: Any) -> Any:
            seen.append(start.x.clone())
            return (yield from super().__call__(ctx, start))

    out = guided(pipe, redness, method=Watch(5), lane_width=1)(**arguments(family))
    winner = out.report.chosen[0][1]
    again = pipe(**arguments(family, latents=seen[0][[winner]])).images
    assert torch.equal(again, out.images)
    assert out.rewards[0] == max(latents_of(out.report))


def test_particles_come_from_the_pipelines_own_draw() -> None:
    """A particle beyond the plain call is `randn` from a generator of its own."""
    pipe = shared("sd")
    user = seeded(0)
    (seed,) = seeds = call_seeds(user, 1, 1, "cpu")
    source = Source(pipe, prompts=1, images=1, lane_width=2, seeds=seeds, generator=user)
    drawn = source(2, 4, 16, 16, torch.float32, torch.device("cpu"), user, None)
    assert torch.equal(drawn[:1], torch.randn(1, 4, 8, 8, generator=seeded(0)))
    own = torch.randn(1, 4, 8, 8, generator=seeded(row_seed(seed, 1)))
    assert torch.equal(drawn[1:], own)
    source.lane = drawn
    assert torch.equal(source.draw([1], [0]).x, own)
    later = torch.randn(1, 4, 8, 8, generator=seeded(row_seed(seed, 9)))
    assert torch.equal(source.draw([0, 9], [0]).x, torch.cat([drawn[:1], later]))


class Conditioned(DiffusionPipeline):
    """`prepare_latents` draws a condition beside the latents, as image-to-video pipelines do."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def prepare_latents(self, batch_size: int, generator: Any = None) -> tuple[Tensor, Tensor]:
        shape = (batch_size, 3, 8, 8)
        condition = randn_tensor(shape, generator=generator)
        return randn_tensor(shape, generator=generator), condition

    @torch.no_grad()
    def __call__(
        self, prompt: str, num_images_per_prompt: int = 1, generator: Any = None
    ) -> ImagePipelineOutput:
        x, condition = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(0.5 * x + 0.1 * condition, t, x).prev_sample
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


def test_the_condition_is_the_plain_calls_in_lanes_of_any_width() -> None:
    pipe = Conditioned(DDIMScheduler())
    scores = []
    for width in (1, 2, 4):
        call = guided(pipe, redness, method=BestOfN(4), lane_width=width)
        out = call("a", generator=seeded(0))
        events = out.report.trace.of("score")
        found = {k: r for e in events for k, r in zip(e["particle"], e["reward"], strict=True)}
        scores.append([found[k] for k in range(4)])
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert scores[2] == pytest.approx(scores[0], abs=1e-6)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "euler_a"])
def test_prompts_together_equal_prompts_apart(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    prompts = ["a red circle", "two blue squares", "z"]
    method = Prune(start=4, keep=(2,), at=(0.5,))
    call = guided(pipe, redness, method=method, lane_width=2)
    together = call(**arguments("sd", prompt=prompts, generator=[seeded(i) for i in range(3)]))
    for i, prompt in enumerate(prompts):
        apart = call(**arguments("sd", prompt=prompt, generator=[seeded(i)]))
        assert torch.allclose(apart.images[0], together.images[i], atol=1e-4)
        assert apart.rewards[0] == pytest.approx(together.rewards[i], abs=1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_several_images_per_prompt(width: int) -> None:
    pipe = shared("sd")
    given = arguments("sd", prompt=["a", "b"], num_images_per_prompt=2)
    out = guided(pipe, redness, method=BestOfN(2), lane_width=width)(**given)
    assert out.images.shape[0] == len(out.rewards) == len(out.accepted) == 4
    assert [p for p, _ in out.report.chosen] == [0, 0, 1, 1]
    for prompt in (0, 1):
        pool = sorted(latents_of(out.report, prompt), reverse=True)
        assert out.rewards[2 * prompt : 2 * prompt + 2] == pytest.approx(pool[:2])
        assert len(pool) == 4
    assert out.report.ledger.denoiser_rows == 4 * 2 * 4


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_embeddings_are_widened_in_every_family(family: str) -> None:
    """SD3 and Flux do not repeat embeddings that they are given; the result is that of text."""
    pipe = shared(family)
    given = arguments(family, prompt=["a red circle", "two"])
    expected = guided(pipe, redness, method=BestOfN(2), lane_width=2)(**given)
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds"]
    names += ["negative_pooled_prompt_embeds"]
    encode: dict[str, Any] = {"prompt": given["prompt"]}
    if family in ("sd3", "flux"):
        encode |= {"prompt_2": None, "max_sequence_length": 8}
    if family == "sd3":
        encode |= {"prompt_3": None}
    if family == "sd":
        encode |= {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    found = pipe.encode_prompt(**encode)
    if family == "flux":
        embeds = {"prompt_embeds": found[0], "pooled_prompt_embeds": found[1]}
    else:
        embeds = dict(zip(names, found, strict=False))
    call = guided(pipe, redness, method=BestOfN(2), lane_width=2)
    out = call(
        **{**given, "prompt": None, "generator": seeded(0), **embeds}, reward_prompt=["r", "t"]
    )
    assert torch.allclose(out.images, expected.images, atol=1e-5)
    assert out.report.chosen == expected.report.chosen


def test_text_beside_given_negative_embeddings() -> None:
    pipe = shared("sd3")
    _, negative, _, pooled = pipe.encode_prompt("a red circle", None, None, max_sequence_length=8)
    given = arguments("sd3", negative_prompt_embeds=negative, negative_pooled_prompt_embeds=pooled)
    one, two = (
        guided(pipe, redness, method=BestOfN(2), lane_width=w)(**{**given, "generator": seeded(0)})
        for w in (1, 2)
    )
    assert torch.allclose(one.images, two.images, atol=1e-4)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_only_winners_are_decoded_by_the_pipeline(kind: str) -> None:
    pipe = build("sd")
    rows: list[int] = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, *a, **k: (rows.append(len(z)), decode(z, *a, **k))[1]
    out = guided(pipe, redness, method=BestOfN(4), lane_width=2)(
        **arguments("sd", output_type=kind)
    )
    assert rows == [2, 2, 1]
    assert out.report.ledger.decodes == 5
    assert len(out.images) == 1


def test_text_is_encoded_once() -> None:
    pipe, calls = build("sd"), []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    pipe(**arguments("sd"))
    plain = len(calls)
    guided(pipe, redness, method=BestOfN(4), lane_width=2)(**arguments("sd"))
    assert len(calls) == 2 * plain


def test_generators_as_a_list_with_a_wide_lane() -> None:
    given = arguments("sd", prompt=["a", "b"], num_images_per_prompt=2)
    given["generator"] = [seeded(i) for i in range(4)]
    out = guided(shared("sd"), redness, method=BestOfN(2), lane_width=2)(**given)
    assert len(out.images) == 4


def test_given_latents_are_particle_0() -> None:
    x = torch.randn(1, 4, 8, 8, generator=seeded(9))
    pipe = shared("sd")
    out = guided(pipe, redness, method=BestOfN(4), lane_width=2)(**arguments("sd", latents=x))
    plain = pipe(**arguments("sd", latents=x, output_type="pt")).images
    assert out.report.base_reward[0] == pytest.approx(float(plain[:, 0].mean()), abs=1e-5)
    assert len({round(value, 5) for value in latents_of(out.report)}) == 4


def test_lora_adapters() -> None:
    from peft import LoraConfig

    pipe = build("sd")
    given = arguments("sd")
    bare = pipe(**arguments("sd")).images
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    plain = pipe(**arguments("sd")).images
    ours = guided(pipe, redness, method=BestOfN(1))(**given)
    assert torch.equal(plain, ours.images)
    assert not torch.equal(plain, bare)


def test_offload_hooks() -> None:
    """`enable_model_cpu_offload` is this chain of hooks, with an accelerator for the device."""
    pipe, hook = build("sd"), None
    plain = pipe(**arguments("sd", output_type="pt")).images
    for name in ("text_encoder", "unet", "vae"):
        module, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", hook)
        setattr(pipe, name, module)
    ours = guided(pipe, redness, method=BestOfN(2), lane_width=1)(
        **arguments("sd", output_type="pt")
    )
    assert ours.report.base_reward[0] == pytest.approx(float(plain[:, 0].mean()), abs=1e-6)
    one = guided(pipe, redness, method=BestOfN(1))(**arguments("sd", output_type="pt"))
    assert torch.equal(one.images, plain)


def state(pipe: Any) -> tuple[Any, ...]:
    return (
        pipe.scheduler,
        dict(pipe.config),
        sorted(vars(pipe)),
        dict(vars(pipe.scheduler)).keys(),
        pipe.scheduler.num_inference_steps,
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["reward", "callback"])
def test_the_pipeline_leaves_as_it_came(error: type[BaseException], where: str) -> None:
    pipe = build("sd", "dpm++2m")
    pipe(**arguments("sd"))
    before = state(pipe)

    def fail(*args: Any) -> Any:
        raise error("stop")

    given = arguments("sd", **({"callback_on_step_end": fail} if where == "callback" else {}))
    call = guided(pipe, fail if where == "reward" else redness, method=BestOfN(4), lane_width=2)
    with pytest.raises(error, match="stop"):
        call(**given)
    after = state(pipe)
    assert after[0] is before[0]
    assert after[1:] == before[1:]
    plain = build("sd", "dpm++2m")(**arguments("sd")).images
    assert torch.equal(pipe(**arguments("sd")).images, plain)
    guided(pipe, redness, compute=2)(**arguments("sd", num_inference_steps=8))
    assert state(pipe)[0] is before[0]
    assert state(pipe)[1:] == before[1:]


def test_callbacks_see_every_denoiser_call() -> None:
    seen: list[tuple[int, int]] = []

    def watch(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, len(tensors["latents"])))
        assert pipe.scheduler.config.num_train_timesteps == 1000
        return {}

    guided(shared("sd"), redness, method=BestOfN(4), lane_width=2)(
        **arguments("sd", num_inference_steps=2, callback_on_step_end=watch)
    )
    assert seen == [(0, 2), (1, 2), (0, 2), (1, 1)]


def test_attributes_fall_through() -> None:
    pipe = build("sd")
    call = guided(pipe, redness)
    assert call.unet is pipe.unet
    assert call.to("cpu") is call
    call.scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    assert call.scheduler is pipe.scheduler
    assert guided(call, redness).pipe is pipe
    with pytest.raises(AttributeError):
        _ = call.nothing_of_the_kind
    assert "redness" in repr(call)


def test_judges_look_on() -> None:
    def blueness(images: Tensor, prompts: Any) -> Tensor:
        return images[:, 2].mean((1, 2))

    call = guided(shared("sd"), redness, method=BestOfN(3), judge=[blueness])
    out = call(**arguments("sd", output_type="pt"))
    assert out.report.judges["blueness"] == pytest.approx([float(out.images[0, 2].mean())])
    plain = shared("sd")(**arguments("sd", output_type="pt")).images
    assert out.report.base_judges["blueness"] == pytest.approx([float(plain[0, 2].mean())])
    assert out.report.base_reward == pytest.approx([float(plain[0, 0].mean())])


def test_previews_are_kept_on_request() -> None:
    method = Prune(start=4, keep=(2,), at=(0.5,))
    out = guided(shared("sd"), redness, method=method, keep_images=True)(**arguments("sd"))
    keys = set(out.report.trace.images)
    assert {(0, k, 1) for k in range(4)} <= keys
    assert len(keys) == 6
    image = out.report.trace.images[0, out.report.chosen[0][1], -1]
    assert image.shape == (16, 16, 3)
    assert image.dtype == "uint8"


def test_effort_per_call() -> None:
    call = guided(shared("sd"), redness, method=BestOfN(2), compute_unit="rows")
    given = arguments("sd", num_inference_steps=8)
    assert call(**given).report.method == BestOfN(2)
    assert call(**given, method=BestOfN(3)).report.method == BestOfN(3)
    assert call(**given, compute=4).report.method == Prune.for_compute(4, 8)


def _short_runs(call: Any, steps: int, given: dict[str, Any]) -> BestOfN:
    """What a bare compute=4 planned: within its budget, as estimated; and compute=1 is plain."""
    out = call(**given)
    made, ledger = out.report.method, out.report.ledger
    assert isinstance(made, BestOfN)
    assert sum(ledger.flops.values()) <= 4 * ledger.plain_flops
    assert estimate(call, steps).method == made
    assert call(**given, compute=1).report.method == BestOfN(1)
    return made


def test_the_default_for_a_few_step_model() -> None:
    """Short runs for a scheduler that draws all noise anew, and for no other."""
    pipe = build("sd")
    given = arguments("sd", num_inference_steps=4)
    assert guided(pipe, redness, compute=4)(**given).report.method.strides is None
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    call = guided(pipe, redness, compute=4)
    made = _short_runs(call, 4, given)
    assert made.n > 1 and made.strides == 3
    two = estimate(call, 4, method=BestOfN(2, strides=3)).calls
    with pytest.warns(UserWarning, match=rf"two candidates cost {two:.2f} plain calls"):
        assert call(**given, compute=two - 0.01).report.method == BestOfN(1)
    assert call(**given, compute=two + 0.01).report.method == BestOfN(2, strides=3)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("sd3", {}),
        ("sd3", {"prompt": ["a red circle", "a blue square"]}),
        ("flux", {}),
        ("wan", {}),
    ],
)
def test_the_default_for_a_flow(family: str, more: dict[str, Any]) -> None:
    """Short runs to the end."""
    given = arguments(family, num_inference_steps=12, guidance_scale=3.5, **more)
    made = _short_runs(guided(shared(family), redness, compute=4), 12, given)
    assert made.n > 4 and made.strides == 5


def test_a_class_is_made_as_large_as_compute_pays_for() -> None:
    call = guided(shared("sd"), redness, method=BestOfN, compute=4)
    given = arguments("sd", num_inference_steps=9)
    for compute, out in ((4, call(**given)), (8, call(**given, compute=8))):
        ledger, made = out.report.ledger, out.report.method
        assert isinstance(made, BestOfN) and made.n > compute / 2
        assert sum(ledger.flops.values()) <= compute * ledger.plain_flops
    out = call(**given, method=Prune, compute=6)
    assert isinstance(out.report.method, Prune)
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        call(**given, method=Prune, compute=0.5)
    with pytest.raises(ValueError, match="write its arguments out"):
        guided(shared("sd"), redness, method=Gate)


@pytest.mark.sample
@pytest.mark.parametrize("compute", [1, 1.5, 2, 3, 4, 5.5, 8])
@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 2), ("ddim", 9), ("heun", 8)])
def test_compute_is_never_exceeded(compute: float, scheduler: str, steps: int) -> None:
    given = arguments("sd", num_inference_steps=steps)
    pipe = shared("sd", scheduler)
    out = guided(pipe, redness, compute=compute)(**given)
    plain = 2 * steps - 1 if scheduler == "heun" else steps
    assert out.report.steps == plain
    ledger = out.report.ledger
    assert plain <= ledger.denoiser_rows <= compute * plain
    assert ledger.denoiser_rows == out.report.method.cost(plain)
    assert ledger.plain_flops > 0
    assert sum(ledger.flops.values()) <= compute * ledger.plain_flops


def test_wide_lanes_stay_within_compute_too() -> None:
    for width in (2, 3):
        given = arguments("sd", num_inference_steps=9, prompt=["a", "b"])
        out = guided(shared("sd"), redness, compute=4, lane_width=width)(**given)
        assert out.report.ledger.denoiser_rows <= 4 * 9 * 2


def test_padding_is_counted_where_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer.pipeline.widths.can_narrow", lambda pipe: False)
    out = guided(shared("sd"), redness, method=BestOfN(3), lane_width=2)(**arguments("sd"))
    assert out.report.ledger.denoiser_rows == 4 * 4
    assert out.report.ledger.reward_calls == 3


def test_pipelines_without_prompts() -> None:
    """An unconditional pipeline of pixels: no prepare_latents, no prompt, no VAE."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipe = DDPMPipeline(unet, DDPMScheduler()).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(generator=seeded(0), num_inference_steps=3, output_type="np").images

    def red(images: Tensor, prompts: Any) -> Tensor:
        return images[:, 0].mean((1, 2))

    red.needs_prompt = False
    one = guided(pipe, red, method=BestOfN(1))(
        generator=seeded(0), num_inference_steps=3, output_type="np"
    )
    assert (plain == one.images).all()
    best = guided(pipe, red, method=BestOfN(4))(
        generator=seeded(0), num_inference_steps=3, output_type="np"
    )
    assert best.rewards[0] >= one.rewards[0]


def test_a_prompt_longer_than_the_window_is_shown() -> None:
    pipe = shared("sd")
    call = guided(pipe, redness, method=BestOfN(1))
    with pytest.warns(UserWarning, match=r"does not see 'o p'"):
        call(**arguments("sd", prompt="a b c d e f g h i j k l m n o p"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(**arguments("sd"))


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_further_particles_leave_the_global_generator_alone(scheduler: str) -> None:
    pipe, states = shared("sd", scheduler), []
    bases = []
    for call in (pipe, guided(pipe, redness, method=BestOfN(3), lane_width=1)):
        torch.manual_seed(4)
        out = call(**arguments("sd", generator=None, output_type="pt"))
        states.append(torch.get_rng_state())
        bases.append(out)
    assert torch.equal(*states)
    plain, ours = bases
    assert ours.report.base_reward[0] == pytest.approx(float(plain.images[:, 0].mean()), abs=1e-5)


def test_a_second_call_with_the_same_generator_draws_new_particles() -> None:
    call, generator = guided(shared("sd"), redness, method=BestOfN(3)), seeded(0)
    first, second = (call(**arguments("sd", generator=generator)) for _ in range(2))
    assert not set(latents_of(first.report)) & set(latents_of(second.report))
    again = call(**arguments("sd"))
    assert torch.equal(first.images, again.images)


def test_report_of_a_call_that_returned_a_tuple() -> None:
    call = guided(shared("sd"), redness, method=BestOfN(2))
    images, _ = call(**arguments("sd", return_dict=False))
    assert call.report is not None
    assert len(call.report.rewards) == len(images) == 1
    assert call.report.accepted == [True]


def test_the_name_stays_a_function() -> None:
    """No module of the package may shadow a public function once it is imported."""
    import importlib

    import steer

    for module in ("pipeline", "pipeline.guided", "rewards", "methods"):
        importlib.import_module(f"steer.{module}")
    for name in steer.__all__:
        assert getattr(steer, name) is getattr(steer, name)
    assert callable(steer.guided)


def test_progress_bar_counts_denoiser_calls(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = build("sd")
    pipe.set_progress_bar_config(disable=False)
    guided(pipe, redness, method=BestOfN(4), lane_width=2)(**arguments("sd"))
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "reward=" in shown
