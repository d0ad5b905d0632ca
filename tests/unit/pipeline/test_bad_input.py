"""Bad input: one clear sentence that names the argument, the value and the way out."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from families import BETAS, arguments, build, redness, shared

import steer.core.errors as errors
from steer.methods import BestOfN, Gate, Prune
from steer.pipeline.guided import guided


@pytest.mark.parametrize("compute", [0, 0.5, -1, float("nan"), float("inf"), "4", True])
def test_compute(compute: Any) -> None:
    with pytest.raises(ValueError, match=r"compute=.*"):
        guided(shared("sd"), redness, compute=compute)
    with pytest.raises(ValueError, match=r"compute="):
        guided(shared("sd"), redness)(**arguments("sd"), compute=compute)


@pytest.mark.parametrize("n", [0, -2, 1.5, "3", None, True])
def test_best_of_n(n: Any) -> None:
    with pytest.raises(ValueError, match=r"n=.*BestOfN\(4\)"):
        BestOfN(n)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"start": 0}, "start=0"),
        ({"keep": (4, 0)}, "keep=0"),
        ({"keep": (9, 2)}, "keep=.* with start=8"),
        ({"keep": (2, 4)}, "cannot grow"),
        ({"keep": (4,)}, "differ in length"),
        ({"at": (0.5, 0.25)}, "rising"),
        ({"at": (0.25, 0.25)}, "rising"),
        ({"at": (0.0, 0.5)}, "between 0 and 1"),
        ({"at": (0.25, 1.0)}, "between 0 and 1"),
        ({"at": ("a", "b")}, "between 0 and 1"),
        ({"keep": 4}, "keep=4"),
    ],
)
def test_prune(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Prune(**given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": 4}, "method=4"),
        ({"threshold": "high"}, "threshold='high'"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"max_rounds": 0}, "max_rounds=0"),
        ({"on_reject": "drop"}, "on_reject='drop'"),
    ],
)
def test_gate(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Gate(**{"method": BestOfN(2), "threshold": 0.5, **given})


def test_unknown_names() -> None:
    pipe = shared("sd")
    with pytest.raises(ValueError, match="reward='nonsense' is unknown"):
        guided(pipe, "nonsense")
    with pytest.raises(ValueError, match=r"method='best'.*steer\.BestOfN"):
        guided(pipe, redness, method="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="give one"):
        guided(pipe, redness, method=BestOfN(2), compute=4)


@pytest.mark.parametrize("width", [0, -1, 1.5, True])
def test_width(width: Any) -> None:
    with pytest.raises(ValueError, match="width="):
        guided(shared("sd"), redness, lane_width=width)


def test_width_beyond_compute_where_padding_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer.pipeline.widths.can_narrow", lambda pipe: False)
    with pytest.raises(ValueError, match="lower lane_width or raise compute"):
        guided(shared("sd"), redness, compute=2, lane_width=4)(**arguments("sd"))


@pytest.mark.parametrize("pipe", [None, object()])
def test_not_a_pipeline(pipe: Any) -> None:
    with pytest.raises(errors.UnsupportedPipelineError, match="pass a diffusers pipeline"):
        guided(pipe, redness)


class Deaf:
    """Has a scheduler, and never looks at its timesteps."""

    def __init__(self, step: bool) -> None:
        self.scheduler = diffusers.DDIMScheduler()
        self.step = step

    def __call__(self, prompt: str) -> tuple[torch.Tensor]:
        self.scheduler.set_timesteps(2)
        x = torch.zeros(1, 4, 8, 8)
        if self.step:
            x = self.scheduler.step(x, 1, x).prev_sample
        return (x,)


@pytest.mark.parametrize("step", [True, False])
def test_a_loop_that_cannot_be_driven(step: bool) -> None:
    pipe = Deaf(step)
    scheduler = pipe.scheduler
    with pytest.raises(errors.UnsupportedPipelineError, match=r"cannot be driven.*use BestOfN"):
        guided(pipe, redness, method=Prune(2, (1,), (0.5,)))("a")
    assert pipe.scheduler is scheduler


def test_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(errors.SteerError, match=r"torch\.no_grad"):
        guided(shared("sd"), redness)(**arguments("sd"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rewards_that_are_not_finite(value: float) -> None:
    def odd(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([value if p == "two" else 1.0 for p in prompts])

    call = guided(shared("sd"), odd, method=BestOfN(2), lane_width=1)
    message = r"reward 'odd' returned -?(nan|inf) for prompt 1 \('two'\), particle 0"
    with pytest.raises(errors.RewardError, match=message):
        call(**arguments("sd", prompt=["one", "two"]))


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,)], ids=["scalar", "one", "column", "more"])
def test_rewards_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    def odd(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(shape)

    with pytest.raises(errors.RewardError, match="reward 'odd' returned"):
        guided(shared("sd"), odd, method=BestOfN(2), lane_width=2)(**arguments("sd"))


def test_a_reward_that_reads_prompts_without_text() -> None:
    pipe = shared("sd")
    embeds, negative = pipe.encode_prompt("a", "cpu", 1, True)
    given = arguments("sd", prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    with pytest.raises(ValueError, match="pass reward_prompt="):
        guided(pipe, redness)(**given)
    with pytest.raises(ValueError, match="reward_prompt has 2 texts for 1 prompts"):
        guided(pipe, redness)(**given, reward_prompt=["a", "b"])


def test_arguments_that_the_pipeline_refuses() -> None:
    pipe = shared("sd3")
    kept = pipe.scheduler
    with pytest.raises(TypeError, match="nonsense"):
        guided(pipe, redness)(**arguments("sd3"), nonsense=1)
    with pytest.raises(ValueError, match="divisible by"):
        guided(pipe, redness)(**arguments("sd3", height=13))
    assert pipe.scheduler is kept


def test_what_the_plain_call_refuses_too_says_nothing_of_lanes(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The scheduler's own sentence, no warning, and later calls have lanes as wide as before."""
    pipe = build("sd")
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    call = guided(pipe, redness, method=BestOfN(4))
    with pytest.raises(ValueError, match="original_steps") as refused:
        call(**arguments("sd", num_inference_steps=60))
    assert "as wide" not in str(refused.value)
    out = call(**arguments("sd", num_inference_steps=4))
    assert out.report.ledger.denoiser_calls == 4
    assert not [str(w.message) for w in recwarn if "lanes" in str(w.message)]


def test_one_brownian_path_for_the_whole_batch() -> None:
    pytest.importorskip("torchsde")
    pipe = build("sd")
    pipe.scheduler = diffusers.DPMSolverSDEScheduler(**BETAS)
    with pytest.raises(errors.UnsupportedSchedulerError, match="Brownian"):
        guided(pipe, redness, method=BestOfN(2))(**arguments("sd"))


def test_ddim_eta_1_on_zero_terminal_snr() -> None:
    """NaN in diffusers; here it works."""
    pipe = build("sd")
    pipe.scheduler = diffusers.DDIMScheduler(
        **BETAS,
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )
    given = arguments("sd", eta=1.0, num_inference_steps=5)
    out = guided(pipe, redness, method=BestOfN(2))(**given)
    assert torch.isfinite(out.images).all()


def test_feature_caches_and_searches_that_jump() -> None:
    pipe = build("flux")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    call = guided(pipe, redness, method=BestOfN(2))
    call(**arguments("flux"))
    with pytest.raises(errors.UnsupportedPipelineError, match=r"transformer\.disable_cache"):
        call(**arguments("flux"), method=Prune(5, (2,), (0.5,)))
    pipe.transformer.disable_cache()
    call(**arguments("flux"), method=BestOfN(5))


class OwnError(LookupError):
    """Somebody else's."""


def picky(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Fails on the second prompt."""
    if "two" in prompts:
        raise OwnError("no such colour")
    return torch.ones(len(images))


@pytest.mark.parametrize(
    ("method", "step"),
    [(BestOfN(2), "step 4 of 4"), (Prune(start=2, keep=(1,), at=(0.5,)), "step 2 of 4")],
)
def test_a_reward_that_throws(method: Any, step: str) -> None:
    """Its own error comes through, with prompt, particle and step on it."""
    call = guided(shared("sd"), picky, method=method, lane_width=1)
    with pytest.raises(OwnError, match="no such colour") as caught:
        call(**arguments("sd", prompt=["one", "two"]))
    assert type(caught.value) is OwnError
    (note,) = caught.value.__notes__
    assert "reward 'picky'" in note and step in note
    assert "prompt 1 ('two'), particle 0" in note


def test_a_judge_that_throws() -> None:
    call = guided(shared("sd"), redness, method=BestOfN(2), judge=picky)
    with pytest.raises(OwnError) as caught:
        call(**arguments("sd", prompt="two"))
    assert "reward 'picky' was scoring prompt 0 ('two')" in caught.value.__notes__[0]


def test_a_part_of_a_reward_that_throws() -> None:
    call = guided(shared("sd"), {redness: 0.5, picky: 0.5}, method=BestOfN(12), lane_width=12)
    with pytest.raises(OwnError) as caught:
        call(**arguments("sd", prompt="two"))
    (note,) = caught.value.__notes__
    assert "redness=0.5,picky=0.5" in note
    assert "particle 0, 1, 2, 3" in note


def test_assigned_attributes_are_resolved_or_refused() -> None:
    pipe = shared("sd")
    call: Any = guided(pipe, redness, method=BestOfN(2))
    call.reward = call.judges = {redness: 2.0}
    out = call(**arguments("sd"))
    assert out.report.judges[call.judges[0].name] == pytest.approx(out.rewards)
    call.reward, call.judges = redness, None
    assert call(**arguments("sd")).rewards == pytest.approx([out.rewards[0] / 2])
    refused = {
        "reward": ("nonsense", "reward='nonsense' is unknown"),
        "judges": ([redness, "nonsense"], "reward='nonsense' is unknown"),
        "method": ("BestOfN(4)", r"method='BestOfN\(4\)'.*steer\.BestOfN"),
        "compute": (4, "give one"),
        "compute_unit": ("seconds", r"compute_unit='seconds'.*'flops', 'rows'"),
        "lane_width": (0, "lane_width=0"),
        "pipe": (None, "pass a diffusers pipeline"),
    }
    for name, (value, message) in refused.items():
        before = getattr(call, name)
        with pytest.raises((ValueError, errors.UnsupportedPipelineError), match=message):
            setattr(call, name, value)
        assert getattr(call, name) is before
    call.method, call.compute, call.compute_unit = None, 2, "rows"
    assert call(**arguments("sd")).report.ledger.denoiser_rows == 2 * 4
