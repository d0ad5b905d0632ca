"""What must hold in every family: the ledger, lanes, prompts, embeddings, solvers with history."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from counted_work import counting, reddish
from torch import Tensor

from families import FAMILIES, arguments, build, redness, seeded, shared
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import decode
from steer.methods import BestOfN, Prune, Tree
from steer.pipeline.guided import guided


NEW = ["pixart", "sana", "wan"]


def finals(report: Any, prompt: int = 0) -> list[float]:
    """Final rewards of one prompt by particle."""
    found: dict[int, float] = {}
    for row in report.trace.of("score", prompt):
        if not row["preview"]:
            found |= dict(zip(row["particle"], row["reward"], strict=True))
    return [found[k] for k in sorted(found)]


@pytest.mark.sample
@pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ledger_counts_the_denoisers_rows(family: str, guidance: float | None) -> None:
    """Counted at the model: guidance doubles what every latent costs it, or does not."""
    pipe = shared(family)
    more = {} if guidance is None else {"guidance_scale": guidance}
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=BestOfN(3), lane_width=2)(**arguments(family, **more))
    ledger = out.report.ledger
    checked = seen.rows - ledger.denoiser_rows * ledger.cfg_rows
    assert ledger.denoiser_rows == 3 * 4 and ledger.checked_rows == 1
    assert checked in (1, ledger.cfg_rows)
    assert ledger.cfg_rows == (1 if guidance == 1.0 or family == "flux" else 2)
    assert seen.decodes == ledger.decodes == 3


@pytest.mark.parametrize("negative", [None, "blue"])
def test_flux_has_guidance_of_two_kinds(negative: str | None) -> None:
    """An embedded scale costs nothing; `true_cfg_scale` doubles, given a negative prompt."""
    pipe = shared("flux")
    given = arguments("flux", true_cfg_scale=2.0, negative_prompt=negative)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=BestOfN(2))(**given)
    calls = 2 if negative else 1
    assert out.report.ledger.cfg_rows == calls
    assert seen.rows == out.report.ledger.denoiser_rows * calls


@pytest.mark.parametrize("family", NEW)
def test_width_does_not_matter(family: str) -> None:
    pipe = shared(family)
    outs = [
        guided(pipe, redness, method=BestOfN(5), lane_width=w)(**arguments(family))
        for w in (1, 2, 4)
    ]
    assert len({out.report.chosen[0] for out in outs}) == 1
    for out in outs[1:]:
        assert torch.allclose(out[0], outs[0][0], atol=2e-4)
        assert finals(out.report) == pytest.approx(finals(outs[0].report), abs=1e-5)
    plain = decode(pipe, pipe(**arguments(family))[0]).flatten(0, -4)
    assert outs[2].report.base_reward[0] == pytest.approx(float(plain[:, 0].mean()), abs=1e-5)
    assert len({round(value, 6) for value in finals(outs[0].report)}) == 5


@pytest.mark.parametrize("family", NEW)
def test_prompts_together_equal_prompts_apart(family: str) -> None:
    """Prompts of different lengths: each must keep its own attention mask in a wide lane."""
    call = guided(shared(family), redness, method=Prune(4, (2,), (0.5,)), lane_width=2)
    prompts, few = ["a red circle of blue", "left"], {"num_inference_steps": 2}
    given = arguments(family, prompt=prompts, generator=[seeded(i) for i in range(2)], **few)
    together = call(**given)
    for i, prompt in enumerate(prompts):
        apart = call(**arguments(family, prompt=prompt, generator=[seeded(i)], **few))
        assert torch.allclose(apart[0][0], together[0][i], atol=1e-4)
        assert apart.rewards[0] == pytest.approx(together.rewards[i], abs=1e-5)


@pytest.mark.parametrize("family", NEW)
def test_embeddings_are_widened(family: str) -> None:
    pipe = shared(family)
    given = arguments(family, prompt=["a red circle", "two"])
    expected = guided(pipe, redness, method=BestOfN(2), lane_width=2)(**given)
    encode = {"prompt": given["prompt"], "max_sequence_length": 8}
    if family == "sana":
        encode["complex_human_instruction"] = None
    found = pipe.encode_prompt(**encode)
    names = ["prompt_embeds", "prompt_attention_mask"]
    names += ["negative_prompt_embeds", "negative_prompt_attention_mask"]
    embeds = dict(zip(names[::2] if family == "wan" else names, found, strict=True))
    own = {"prompt": None, "negative_prompt": None, "generator": seeded(0), **embeds}
    call = guided(pipe, redness, method=BestOfN(2), lane_width=2)
    out = call(**{**given, **own}, reward_prompt=["r", "t"])
    assert torch.allclose(out[0], expected[0], atol=1e-5)
    assert out.report.chosen == expected.report.chosen


@pytest.mark.parametrize("family", ["pixart", "sana"])
def test_decodes_as_the_pipeline_does(family: str) -> None:
    pipe = shared(family)
    given = {"prompt": ["a", "blue"]}
    latents = pipe(**arguments(family, **given))[0]
    expected = pipe(**arguments(family, **given, output_type="pt"))[0]
    size = {name: arguments(family)[name] for name in ("height", "width")}
    assert torch.equal(decode(pipe, latents, asked=Asked(size)), expected)


def test_sana_images_of_binned_sizes_come_back_as_asked() -> None:
    """Resolution binning: the pipeline samples another size and cuts it to the one asked for."""
    pipe = build("sana")
    pipe.transformer.register_to_config(sample_size=16)
    binned = {"use_resolution_binning": True, "num_inference_steps": 1}
    given = arguments("sana", height=480, width=300, **binned)
    out = guided(pipe, redness, method=BestOfN(1))(**given)
    images = decode(pipe, out.images, asked=Asked({"height": 480, "width": 300}))
    assert images.shape == (1, 3, 480, 300)
    assert out.rewards == pytest.approx([float(images[:, 0].mean())], abs=1e-5)


def test_a_learned_sigma_is_not_for_the_search() -> None:
    """PixArt's transformer returns twice the channels; queries are answered with the noise only."""
    pipe, made, answered = build("pixart"), [], []
    pipe.transformer.register_forward_hook(lambda _, __, out: made.append(out[0].shape[1]))

    class Watch(BestOfN):
        def __call__(self, ctx: Any, start: Any) -> Any:
            search = super().__call__(ctx, start)
            query = next(search)
            while True:
                answer = yield query
                answered.append(tuple(answer.shape))
                try:
                    query = search.send(answer)
                except StopIteration as stop:
                    return stop.value

    guided(pipe, redness, method=Watch(2), lane_width=2)(**arguments("pixart"))
    assert set(made) == {8}
    assert set(answered) == {(2, 4, 8, 8)}


HISTORIES = [
    *[("sd", name) for name in ("dpm++2m", "unipc")],
    ("pixart", "dpm++2m"),
    ("sana", "flow-dpm"),
    ("wan", "flow-unipc"),
]


@pytest.mark.parametrize(("family", "scheduler"), HISTORIES)
def test_a_row_that_moved_up_keeps_its_history(family: str, scheduler: str) -> None:
    """Pruning moves rows: the last one left is the plain call from its own noise."""
    pipe, seen, winners = shared(family, scheduler), [], set()

    class Watch(Prune):
        def __call__(self, ctx: Any, start: Any) -> Any:
            seen.append(start.x.clone())
            return (yield from super().__call__(ctx, start))

    for sign in (1, -1):  # two winners, of which one at least was not in the first row

        def reward(images: Tensor, prompts: Any, sign: int = sign) -> Tensor:
            return sign * redness(images, prompts)

        method = Watch(4, (3, 1), (0.4, 0.6))
        out = guided(pipe, reward, method=method, lane_width=1)(
            **arguments(family, num_inference_steps=5)
        )
        _, winner = out.report.chosen[0]
        winners.add(winner)
        given = arguments(family, num_inference_steps=5, latents=seen[-1][[winner]])
        assert torch.allclose(pipe(**given)[0], out[0], atol=2e-4)
    assert len(winners) == 2


@pytest.mark.parametrize(("family", "scheduler"), HISTORIES)
def test_going_back_is_done_without_the_history(family: str, scheduler: str) -> None:
    """`Tree` begins in the middle, by moves of its own unless it is told to use the solver."""
    pipe, given = shared(family, scheduler), arguments(family)
    with pytest.raises(ValueError, match="keeps history from step to step"):
        guided(pipe, reddish, method=Tree(4, kernel="solver"))(**{**given, "generator": seeded(0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = Tree(4, kernel="ddim")
        out = guided(pipe, reddish, method=tree)(**{**given, "generator": seeded(0)})
    assert out.rewards[0] == max(finals(out.report))
