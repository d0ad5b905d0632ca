"""The forward process against diffusers' own schedulers and pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from families import BETAS, FAMILIES, SCHEDULERS, arguments, build, seeded, shared
from hypothesis import given, settings, strategies as st

from steer.core.errors import TuneError
from steer.tune.noising import PREDICTIONS, Noising, denoiser, nest, predict


X0, NOISE = torch.randn(2, 3, 4, 4, 4, generator=seeded(0))
INDEX = torch.tensor([0, 500, 999])


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_is_what_the_scheduler_adds_and_predicts(kind: str, zero_snr: bool) -> None:
    pipe = build("sd")
    options = {**BETAS, "prediction_type": kind, "rescale_betas_zero_snr": zero_snr}
    pipe.scheduler = diffusers.DDIMScheduler(**options, timestep_spacing="trailing")
    noising = Noising.of(pipe)
    assert noising.prediction == kind and len(noising) == 1000
    assert torch.equal(noising.timesteps, torch.arange(1000))
    expected = pipe.scheduler.add_noise(X0, NOISE, INDEX)
    torch.testing.assert_close(noising.add_noise(X0, NOISE, INDEX), expected)
    velocity = pipe.scheduler.get_velocity(X0, NOISE, INDEX)
    targets = {"epsilon": NOISE, "sample": X0, "v_prediction": velocity}
    torch.testing.assert_close(noising.target(X0, NOISE, INDEX), targets[kind])
    assert float(noising.alpha[-1]) == pytest.approx(0, abs=1e-6 if zero_snr else 0.1)


@pytest.mark.parametrize("name", ["euler", "dpm++2m", "unipc", "pndm"])
def test_the_sampler_does_not_matter(name: str) -> None:
    reference = Noising.of(shared("sd", "ddim"))
    other = Noising.of(shared("sd", name))
    assert torch.equal(reference.alpha, other.alpha) and other.prediction == "epsilon"


def test_flow_matching_is_the_schedulers_own_with_its_static_shift() -> None:
    pipe = build("sd3")
    noising = Noising.of(pipe)
    timesteps = noising.timesteps[INDEX]
    expected = pipe.scheduler.scale_noise(X0, timesteps, NOISE)
    torch.testing.assert_close(noising.add_noise(X0, NOISE, INDEX), expected)
    torch.testing.assert_close(noising.target(X0, NOISE, INDEX), NOISE - X0)
    even = torch.linspace(1, 1e-3, 1000)
    torch.testing.assert_close(noising.sigma, 3 * even / (1 + 2 * even))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_timesteps_are_those_the_pipeline_gives_its_denoiser(family: str) -> None:
    pipe = build(family)
    noising = Noising.of(pipe)
    seen: list[float] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        seen.append(float(torch.as_tensor(t).reshape(-1)[0]))

    handle = denoiser(pipe)[1].register_forward_pre_hook(note, with_kwargs=True)
    pipe(**arguments(family, num_inference_steps=3))
    handle.remove()
    at = [float((noising.timesteps - t).abs().min()) for t in seen]
    assert len(seen) >= 3 and max(at) <= 5e-3 * float(noising.timesteps.max())
    sigmas = getattr(pipe.scheduler, "sigmas", None)
    if noising.prediction == "flow" and sigmas is not None and family != "flux":
        first = list(dict.fromkeys(seen))[:3]  # (guidance may call twice per step)
        near = torch.stack([(noising.timesteps - t).abs().argmin() for t in first])
        expected = sigmas[: len(near)].float().clamp(max=1)
        torch.testing.assert_close(noising.sigma[near], expected, atol=5e-3, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(PREDICTIONS), st.floats(0, 1))
def test_noisy_and_target_determine_the_image(kind: str, angle: float) -> None:
    left = 1 - angle if kind == "flow" else (1 - angle**2) ** 0.5
    alpha, sigma = torch.tensor([[left], [angle]], dtype=torch.float64)
    noising = Noising(kind, alpha, sigma, torch.zeros(1))
    x0, noise = X0.double(), NOISE.double()
    index = torch.zeros(3, dtype=torch.long)
    x, y = noising.add_noise(x0, noise, index), noising.target(x0, noise, index)
    found = {
        "epsilon": x - angle * y,  # alpha x0
        "sample": alpha * y,
        "v_prediction": alpha * (alpha * x - angle * y),
        "flow": alpha * (x - angle * y),
    }[kind]
    torch.testing.assert_close(found, alpha * x0, rtol=0, atol=1e-9)


def test_a_learned_variance_is_left_out_and_dotted_names_are_nested() -> None:
    assert nest({"a": X0, "b.c": NOISE, "b.d": X0}) == {"a": X0, "b": {"c": NOISE, "d": X0}}

    def doubled(x: Any, timestep: Any, return_dict: bool) -> Any:
        return (torch.cat([2 * x, x], 1),)

    assert torch.equal(predict(doubled, X0, INDEX, {}), 2 * X0)


def test_unknown_kinds_are_refused() -> None:
    pipe = build("sd")
    pipe.scheduler = diffusers.DDIMScheduler(prediction_type="velocity-ish")
    with pytest.raises(TuneError, match=r"prediction_type='velocity-ish'.*epsilon, v_prediction"):
        Noising.of(pipe)
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(TuneError, match="EDMEulerScheduler: has neither betas"):
        Noising.of(pipe)
    pipe.scheduler = SCHEDULERS["ddim"]()
    odd = type("OddTransformer", (), {"config": pipe.unet.config})()
    carrier = type("Odd", (), {"unet": odd, "scheduler": pipe.scheduler})()
    with pytest.raises(TuneError, match=r"denoiser=OddTransformer.*timestep_scale"):
        Noising.of(carrier)
    assert float(Noising.of(carrier, 1e-3).timesteps[-1]) == pytest.approx(0.999)
    with pytest.raises(TuneError, match="neither a unet nor a transformer"):
        denoiser(object())


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_part_of_the_grid_is_its_noisiest_wherever_noise_begins(family: str) -> None:
    whole = Noising.of(build(family))
    part = whole.between(0.4, 1.0)
    assert len(part) == round(0.6 * len(whole)) and part.prediction == whole.prediction
    outside = ~torch.isin(whole.sigma, part.sigma)
    assert part.sigma.min() > whole.sigma[outside].max()
    rest = whole.between(0.0, 0.4)
    assert len(rest) + len(part) == len(whole)
    at = int((whole.timesteps == part.timesteps[3]).nonzero()[0, 0])
    assert part.alpha[3] == whole.alpha[at] and part.sigma[3] == whole.sigma[at]
    with pytest.raises(TuneError, match=r"noise_range=\[0\.5, 0\.5\]: holds none"):
        whole.between(0.5, 0.5)
