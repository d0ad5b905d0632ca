"""The pipeline called again for every particle, where no search can sit in its loop."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FirstBlockCacheConfig, ImagePipelineOutput
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from families import arguments, build, redness, seeded
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.driver.seeds import call_seeds
from steer.methods import Adaptive, BestOfN, Gate, NoiseSearch, Prune
from steer.pipeline.guided import guided
from steer.search.picks import Quantile


class Cascade(DiffusionPipeline):
    """Two loops in a call, which no search can follow."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.calls = 0

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        self.calls += 1
        rows = num_images_per_prompt * (1 if isinstance(prompt, str) else len(prompt))
        if isinstance(generator, list) and len(generator) == rows:
            x = torch.cat([torch.randn(1, 3, 8, 8, generator=g) for g in generator])
        else:
            x = torch.randn(rows, 3, 8, 8, generator=generator)
        for _ in range(2):
            self.scheduler.set_timesteps(2)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(x * 0.1, t, x).prev_sample
        images: Any = x.clamp(-1, 1) * 0.5 + 0.5
        if output_type == "np":
            images = images.movedim(1, -1).numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _quiet(pipe: Any, method: Any, reward: Any = redness, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return guided(pipe, reward, method=method)(**{"prompt": "a", **given})


def test_a_pick_chooses_among_the_calls() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = guided(Cascade(DDIMScheduler()), redness, method=BestOfN(5), select=Quantile(q=0.0))
        out = run("a", generator=seeded(3))
    scores = [r for row in out.report.trace.of("score") for r in row["reward"]]
    assert len(scores) == 5
    assert out.rewards == [min(scores)]


def test_one_call_is_the_plain_call() -> None:
    pipe = Cascade(DDIMScheduler())
    plain = pipe("a", generator=seeded(3)).images
    out = _quiet(pipe, BestOfN(1), generator=seeded(3))
    assert torch.equal(out.images, plain)
    assert out.rewards == pytest.approx(redness(plain, ["a"]).tolist())


@dataclass
class Checked(ImagePipelineOutput):
    """An output with a field that it must be given, None without a safety checker."""

    nsfw_content_detected: list[bool] | None


def test_fields_that_are_none_are_returned_too() -> None:
    class Plain(Cascade):
        @functools.wraps(Cascade.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return Checked(super().__call__(*args, **kwargs).images, None)

    out = _quiet(Plain(DDIMScheduler()), BestOfN(3), prompt=["a", "b"], generator=seeded(3))
    assert isinstance(out, Checked) and out.nsfw_content_detected is None
    assert out.rewards == pytest.approx(redness(out.images, []).tolist(), abs=1e-6)


def test_every_particle_is_a_call_with_a_seed_of_its_own() -> None:
    pipe = Cascade(DDIMScheduler())
    (seed,) = call_seeds(seeded(3), 1, 1, "cpu")
    generators = [seeded(3), *(seeded(row_seed(seed, k)) for k in (1, 2, 3))]
    images = torch.cat([pipe("a", generator=g).images for g in generators])
    scores = redness(images, ["a"] * 4)
    with pytest.warns(UserWarning, match="every particle is a call of the pipeline"):
        out = guided(pipe, redness, method=BestOfN(4))("a", generator=seeded(3))
    assert out.rewards == pytest.approx([float(scores.max())])
    assert torch.equal(out.images[0], images[scores.argmax()])
    assert out.report.base_reward == pytest.approx([float(scores[0])])
    assert out.report.ledger.denoiser_calls >= 4


def test_the_search_is_tried_once() -> None:
    pipe = Cascade(DDIMScheduler())
    call = guided(pipe, redness, method=BestOfN(2))
    with pytest.warns(UserWarning):
        first = call("a", generator=seeded(0))
    tried = pipe.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = call("a", generator=seeded(0))
    assert pipe.calls - tried == 2 < tried
    assert torch.equal(first.images, second.images)


def test_random_search_over_seeds_needs_no_loop() -> None:
    pipe = Cascade(DDIMScheduler())
    found = _quiet(pipe, NoiseSearch(n=3, rounds=1), generator=seeded(3))
    best = _quiet(pipe, BestOfN(3), generator=seeded(3))
    assert torch.equal(found.images, best.images) and found.rewards == best.rewards
    with pytest.raises(UnsupportedPipelineError, match="use BestOfN"):
        guided(pipe, redness, method=NoiseSearch(n=3, rounds=2))("a", generator=seeded(3))


@pytest.mark.parametrize("form", ["pt", "np"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_several_prompts_and_images(form: str, return_dict: bool) -> None:
    pipe = Cascade(DDIMScheduler())
    given = {"num_images_per_prompt": 2, "output_type": form, "return_dict": return_dict}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = guided(pipe, redness, method=BestOfN(3))
        out = call(["a", "b"], generator=seeded(1), **given)
    images = out[0]
    assert type(images) is (Tensor if form == "pt" else np.ndarray)
    assert len(images) == 4
    pixels = images if form == "pt" else torch.from_numpy(images).movedim(-1, 1)
    assert call.report is not None
    assert call.report.rewards == pytest.approx(redness(pixels, list("aabb")).tolist())
    plain = pipe(["a", "b"], generator=seeded(1), num_images_per_prompt=2).images
    finals = call.report.trace.of("score")
    assert all(len(event["particle"]) for event in finals)
    assert call.report.base_reward == pytest.approx(redness(plain[::2], ["a", "b"]).tolist())


def test_a_gate_asks_again() -> None:
    pipe = Cascade(DDIMScheduler())
    out = _quiet(pipe, Gate(BestOfN(2), threshold=9.0, max_rounds=3), generator=seeded(0))
    assert out.accepted == [False]
    assert sum(len(e["particle"]) for e in out.report.trace.of("score")) == 6


def test_compute_is_best_of_as_many() -> None:
    pipe = Cascade(DDIMScheduler())
    with pytest.warns(UserWarning):
        out = guided(pipe, redness, compute=3)("a", generator=seeded(0))
    assert out.report.method == BestOfN(3)


def test_methods_of_the_loop_are_refused() -> None:
    pipe = Cascade(DDIMScheduler())
    with pytest.raises(UnsupportedPipelineError, match="use BestOfN or a Gate around it"):
        guided(pipe, redness, method=Prune(4, (2,), (0.5,)))("a")


def test_feature_caches_see_plain_calls() -> None:
    """A search that jumps would read other activations; whole calls do not."""
    pipe = build("flux")
    given = arguments("flux", output_type="pt")
    seed = given.pop("generator").initial_seed()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    plain = pipe(**given, generator=seeded(seed)).images
    out = _quiet(pipe, BestOfN(5), **given, generator=seeded(seed))
    base = redness(plain, ["a"]).tolist()
    assert out.report.base_reward == pytest.approx(base, abs=1e-6)


class Sound:
    """No scheduler, no images, no generator: draws from the global one."""

    def __init__(self, tensors: bool = False) -> None:
        self.tensors = tensors

    def __call__(self, prompt: str) -> AudioPipelineOutput:
        audios: Any = torch.randn(1, 2, 50)
        return AudioPipelineOutput(audios=audios if self.tensors else audios.numpy())


@pytest.mark.parametrize("tensors", [True, False])
def test_sound_and_the_global_generator(tensors: bool) -> None:
    def loudness(outputs: list[Any], prompts: list[str]) -> list[float]:
        return [float(abs(one).max()) for one in outputs]

    pipe = Sound(tensors)
    torch.manual_seed(0)
    plain = pipe("a").audios
    state = torch.get_rng_state()
    torch.manual_seed(0)
    out = _quiet(pipe, BestOfN(5), loudness)
    assert torch.equal(torch.get_rng_state(), state)
    assert out.report.base_reward == pytest.approx([float(abs(plain).max())])
    assert out.rewards == pytest.approx([float(abs(out.audios).max())])
    scores = [r for event in out.report.trace.of("score") for r in event["reward"]]
    assert len(set(scores)) == 5
    assert out.rewards == [max(scores)]


def test_sound_under_a_reward_for_images() -> None:
    with pytest.raises(ValueError, match="no images: pass a function"):
        _quiet(Sound(), BestOfN(2), "shapes")


class Afterwards(DiffusionPipeline):
    """Changes latents after its loop, so that nothing decodes to what it returns."""

    def __init__(self, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, prompt: str, generator: Any = None) -> ImagePipelineOutput:
        x = torch.randn(1, 3, 8, 8, generator=generator)
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(x * 0.1, t, x).prev_sample
        x[:, :, :4] = 1.0
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


def test_what_is_scored_is_what_is_returned() -> None:
    pipe = Afterwards(None, DDIMScheduler())
    plain = pipe("a", generator=seeded(0)).images
    out = _quiet(pipe, BestOfN(3), generator=seeded(0))
    assert out.report.base_reward == pytest.approx(redness(plain, ["a"]).tolist())
    assert out.rewards == pytest.approx(redness(out.images, ["a"]).tolist())
    with pytest.warns(UserWarning, match="returns other images"):
        out = guided(pipe, redness, method=Prune(4, (2,), (0.5,)))("a", generator=seeded(0))
    assert out.rewards == pytest.approx(redness(out.images, ["a"]).tolist())


class Streams(DiffusionPipeline):
    """Sound beside the pictures, stepped by a copy of the scheduler."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def prepare_latents(self, batch_size: int, generator: Any = None) -> Tensor:
        return randn_tensor((batch_size, 3, 8, 8), generator=generator)

    @torch.no_grad()
    def __call__(
        self, prompt: str, num_images_per_prompt: int = 1, generator: Any = None
    ) -> ImagePipelineOutput:
        x = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(4)
        second = copy.deepcopy(self.scheduler)
        sound = torch.ones_like(x)
        for t in self.scheduler.timesteps:
            sound = second.step(sound * 0.1, t, sound).prev_sample
            x = self.scheduler.step(x * 0.1 + sound * 0.2, t, x).prev_sample
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


def test_a_second_stream_is_no_search() -> None:
    pipe = Streams(DDIMScheduler())
    plain = pipe("a", generator=seeded(0)).images
    out = _quiet(pipe, BestOfN(3), generator=seeded(0))
    assert out.report.base_reward == pytest.approx(redness(plain, ["a"]).tolist())
    with pytest.raises(UnsupportedPipelineError, match="a second stream"):
        guided(pipe, redness, method=Prune(4, (2,), (0.5,)))("a", generator=seeded(0))


class Widened(Streams):
    """Returns as many rows as its batch had, whatever is left of it."""

    @torch.no_grad()
    def __call__(
        self, prompt: str, num_images_per_prompt: int = 1, generator: Any = None
    ) -> ImagePipelineOutput:
        x = self.prepare_latents(num_images_per_prompt, generator)
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(x * 0.1, t, x).prev_sample
        x = x.repeat(num_images_per_prompt // len(x), 1, 1, 1)
        return ImagePipelineOutput(images=x.clamp(-1, 1) * 0.5 + 0.5)


def test_rows_beyond_the_winners_mean_lanes_of_the_calls_size() -> None:
    call = guided(Widened(DDIMScheduler()), redness, method=BestOfN(4))
    with pytest.warns(UserWarning, match="returns 4 rows for the 1 that were chosen"):
        out = call("a", generator=seeded(0))
    assert out.images.shape == (1, 3, 8, 8)
    assert out.rewards == pytest.approx(redness(out.images, ["a"]).tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call("a", generator=seeded(0)).report.lane_width == 1


def test_views_of_a_class_that_is_not_known_to_make_videos_are_scored_frame_by_frame() -> None:
    class Views(Cascade):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            images = super().__call__(*args, **kwargs).images
            return ImagePipelineOutput(images=[list(row.expand(4, 3, 8, 8)) for row in images])

    Views.__call__.__signature__ = inspect.signature(Cascade.__call__)  # type: ignore[attr-defined]
    out = _quiet(Views(DDIMScheduler()), BestOfN(3), generator=seeded(3), num_images_per_prompt=1)
    returned = torch.stack(out.images[0])
    assert out.rewards == pytest.approx([float(redness(returned, ["a"] * 4).mean())])
    assert out.rewards[0] >= out.report.base_reward[0]


def test_particles_are_the_same_whatever_the_lane_width_of_the_failed_attempt() -> None:
    class Drawn(Cascade):
        """Draws latents of its batch first, and then loops twice."""

        def prepare_latents(self, batch_size: int, generator: Any) -> Tensor:
            return randn_tensor((batch_size, 3, 8, 8), generator)

        def __call__(
            self,
            prompt: str | list[str],
            num_images_per_prompt: int = 1,
            generator: Any = None,
            output_type: str = "pt",
            return_dict: bool = True,
        ) -> Any:
            self.prepare_latents(num_images_per_prompt, generator)
            return super().__call__(prompt, num_images_per_prompt, generator)

    scores: list[Any] = []
    for width in (None, 1, 3):
        call = guided(Drawn(DDIMScheduler()), redness, method=BestOfN(3), lane_width=width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = call("a", generator=seeded(3))
        scores.append([row["reward"] for row in out.report.trace.of("score")])
    assert scores[0] == scores[1] == scores[2]


def test_prompts_are_called_one_by_one_where_a_list_of_generators_fails() -> None:
    class Single(Cascade):
        @functools.wraps(Cascade.__call__)
        def __call__(self, *args: Any, **given: Any) -> Any:
            if isinstance(given.get("generator"), list):
                raise RuntimeError("no list of generators")
            return super().__call__(*args, **given)

    pipe = Single(DDIMScheduler())
    out = _quiet(pipe, BestOfN(3), prompt=["a", "b"], generator=seeded(3))
    seeds = call_seeds(seeded(3), 2, 1, "cpu")
    plain = pipe(prompt=["a", "b"], generator=seeded(3)).images
    for prompt, seed in enumerate(seeds):
        further = [pipe(prompt="a", generator=seeded(row_seed(seed, k))).images for k in (1, 2)]
        scores = redness(torch.cat([plain[prompt : prompt + 1], *further]), [""] * 3)
        assert out.rewards[prompt] == pytest.approx(float(scores.max()))


@pytest.mark.parametrize("kind", ["depth", "normals"])
def test_predictions_that_are_no_pictures_go_to_functions_as_they_are(kind: str) -> None:
    class Predictor(Cascade):
        @functools.wraps(Cascade.__call__)
        def __call__(self, *args: Any, **given: Any) -> Any:
            images: Any = super().__call__(*args, **given).images
            images = images[:, :1] if kind == "depth" else images * 2 - 1
            return ImagePipelineOutput(images=images.movedim(1, -1).numpy())

    def size(outputs: Any, prompts: list[str]) -> list[float]:
        return [float(np.abs(row).mean()) for row in outputs]

    pipe = Predictor(DDIMScheduler())
    plain = pipe("a", generator=seeded(3)).images
    out = _quiet(pipe, BestOfN(3), reward=size, generator=seeded(3))
    assert out.report.base_reward == pytest.approx(size(plain, ["a"]))
    assert out.rewards == pytest.approx(size(out.images, ["a"]))
    assert out.images.shape == plain.shape


def test_a_cutoff_callback_of_diffusers_holds_for_every_particle() -> None:
    """It switches guidance off for good: particles are calls of their own."""
    pipe, given = build("sd"), arguments("sd")
    del given["generator"]
    given |= {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt"}

    def cutoff() -> Any:
        return SDCFGCutoffCallback(cutoff_step_ratio=0.5)

    plain = pipe(**given, generator=seeded(0), callback_on_step_end=cutoff()).images
    (seed,) = call_seeds(seeded(0), 1, 1, "cpu")
    second = pipe(
        **given, generator=seeded(row_seed(seed, 1)), callback_on_step_end=cutoff()
    ).images
    both = redness(torch.cat([plain, second]), ["", ""])
    call = guided(pipe, redness, method=BestOfN(2))
    with pytest.warns(UserWarning, match="SDCFGCutoffCallback switches something off"):
        out = call(**given, generator=seeded(0), callback_on_step_end=cutoff())
    assert out.rewards == pytest.approx([float(both.max())], abs=1e-5)
    assert out.report.base_reward == pytest.approx([float(both[0])], abs=1e-5)
    with pytest.raises(UnsupportedPipelineError, match="use BestOfN"):
        guided(pipe, redness, method=Prune())(**given, callback_on_step_end=cutoff())


def test_prompts_that_stopped_are_not_drawn_again() -> None:
    """The hard one alone goes on, with the images that a call for both would have made."""

    def easy(images: Tensor, prompts: list[str]) -> Tensor:
        scale = torch.tensor([0.001 if "easy" in text else 1.0 for text in prompts])
        return images[:, 0].mean((1, 2)) * scale

    def run(method: Any, prompts: list[str]) -> Any:
        generator = [seeded(k) for k in range(len(prompts))]
        cascade = Cascade(DDIMScheduler())
        return _quiet(cascade, method, easy, prompt=prompts, generator=generator)

    method = Adaptive(9, price=1e-4, unit="reward", least=3)
    out = run(method, ["easy", "hard"])
    few, many = [event["drawn"] for event in out.report.trace.of("stop")]
    assert few == 3 < many
    assert sum(len(row["reward"]) for row in out.report.trace.of("score")) == few + many
    assert out.rewards[1] == run(BestOfN(many), ["easy", "hard"]).rewards[1]
