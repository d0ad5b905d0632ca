"""The loop's number: the query's own step index, and the builtin `enumerate` for all else."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from families import arguments, build, redness, seeded, shared
from torch import Tensor

from steer.driver.counting import Number, count, counting
from steer.methods import BestOfN, Guide, Method, NoiseSearch, Prune
from steer.pipeline.drop_in import drop_in
from steer.pipeline.guided import guided


STEPS = 6


class Indexed(DiffusionPipeline):
    """Looks up by its own count, as ControlNets (`keep[i]`) and guidance windows do."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.seen: list[tuple[int, int]] = []

    def prepare_latents(self, batch_size: int, generator: Any = None) -> Tensor:
        return randn_tensor((batch_size, 3, 8, 8), generator=generator)

    @torch.no_grad()
    def __call__(
        self, prompt: str, num_images_per_prompt: int = 1, generator: Any = None
    ) -> ImagePipelineOutput:
        x = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(STEPS)
        times = self.scheduler.timesteps
        scales = torch.linspace(0.2, 1.0, STEPS)
        for i, t in enumerate(times):
            following = times[i + 1] if i + 1 < len(times) else 0
            self.seen.append((i, int(t)))
            x = self.scheduler.step(scales[i] * x + following / 1e4, t, x).prev_sample
        for i, _ in enumerate("abc"):
            assert i < 3
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


METHODS = [
    BestOfN(5),
    Prune(start=4, keep=(2,), at=(0.5,)),
    NoiseSearch(n=2, rounds=2),
    Guide(Prune(start=2, keep=(1,), at=(0.5,))),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_number_belongs_to_the_timestep(method: Method) -> None:
    pipe = Indexed(DDIMScheduler())
    plain = pipe("a", generator=seeded(0)).images
    places = dict(pipe.seen)
    pipe.seen.clear()
    out = guided(pipe, _redness, method=method)("a", generator=seeded(0))
    assert len(pipe.seen) >= STEPS
    assert set(pipe.seen) == set(places.items())
    if method in METHODS[:3]:
        base = float(plain[:, 0].mean() - plain[:, 1:].mean())
        assert out.report.base_reward == [pytest.approx(base, abs=1e-5)]


def _redness(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


_redness.differentiable = True


def test_only_for_the_time_of_a_call() -> None:
    module = sys.modules[Indexed.__module__]
    pipe = Indexed(DDIMScheduler())
    with counting(pipe), counting(pipe):
        assert vars(module)["enumerate"] is count
    assert "enumerate" not in vars(module)
    with pytest.raises(RuntimeError), counting(pipe):
        raise RuntimeError
    assert "enumerate" not in vars(module)
    assert list(count("ab", 1)) == list(builtins.enumerate("ab", 1))


def test_an_enumerate_of_the_modules_own_stays() -> None:
    module: Any = sys.modules[Indexed.__module__]
    module.enumerate = list
    try:
        with counting(Indexed(DDIMScheduler())):
            assert module.enumerate is list
        assert module.enumerate is list
    finally:
        del module.enumerate


def test_diffusers_callbacks_count_the_plain_steps() -> None:
    seen: list[int] = []

    def watch(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, Any]:
        seen.append(i)
        return {}

    method = Prune(start=4, keep=(1,), at=(0.5,))
    guided(shared("sd"), redness, method=method, lane_width=1)(
        **arguments("sd", num_inference_steps=4, callback_on_step_end=watch)
    )
    assert set(seen) == set(range(4))
    assert len(seen) == method.cost(4)


def test_a_pipeline_of_another_module_is_left_alone() -> None:
    pipe = build("sd")
    module = sys.modules[type(pipe).__module__]
    guided(pipe, redness, method=BestOfN(2))(**arguments("sd"))
    assert "enumerate" not in vars(module)


def test_a_number_moves_on_and_stays_an_index() -> None:
    now = 4
    number = Number.of(1, lambda: now)
    assert [10, 11, 12][number] == 11
    assert f"{number}" == "1"
    assert number + 1 == 5
    assert 1 + number == 5
    assert number - 1 == 3
    assert number == 4
    assert number != 1
    assert number < 5 <= number + 1
    assert 4 <= number <= 4 < 5
    assert not number > 4
    assert number >= 4


def test_the_drop_in_counts_too() -> None:
    pipe = Indexed(DDIMScheduler())
    module = sys.modules[Indexed.__module__]
    plain = pipe("a", generator=seeded(0)).images
    places = set(pipe.seen)
    pipe.scheduler = drop_in(pipe, reward=_redness, prompt="a", method=BestOfN(3))
    for _ in range(2):
        pipe.seen.clear()
        images = pipe("a", generator=seeded(0)).images
        assert set(pipe.seen) == places
        assert "enumerate" not in vars(module)
    assert float(_redness(images, ["a"])) >= float(_redness(plain, ["a"]))


class Barred(Indexed):
    """Iterates over its bar and gives it options of its own, as Marigold does."""

    def progress_bar(self, iterable: Any = None, total: Any = None, leave: bool = True) -> Any:
        self.leave = leave
        return iterable

    @torch.no_grad()
    def __call__(
        self, prompt: str, num_images_per_prompt: int = 1, generator: Any = None
    ) -> ImagePipelineOutput:
        x = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(STEPS)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps, leave=False)):
            self.seen.append((i, int(t)))
            x = self.scheduler.step(x * i / 9, t, x).prev_sample
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


def test_a_loop_over_the_bar_itself() -> None:
    pipe = Barred(DDIMScheduler())
    pipe("a", generator=seeded(0))
    places = set(pipe.seen)
    pipe.seen.clear()
    guided(pipe, _redness, method=Prune(4, (2,), (0.5,)))("a", generator=seeded(0))
    assert set(pipe.seen) == places
    assert pipe.leave is False
