"""`guided(..., select=)`: which candidates come back, and that what is said of them is true."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Mixture, Toy, on_points

from steer.core.errors import SteerError
from steer.methods import SMC, Beam, BestOfN, Budget, Gate, NoiseSearch, Prune, Then, Tree
from steer.pipeline.guided import guided
from steer.search.method import Method
from steer.search.picks import Best, Candidates, Diverse, Pessimistic, Pick, Quantile, SoftBest
from steer.search.picks.picking import Picking


METHODS: list[Method] = [
    BestOfN(5),
    Prune(6, (4, 3), (0.3, 0.6)),
    Beam(4, 2),
    SMC(5),
    NoiseSearch(4, rounds=2),
    Tree(4, compute=4),
    Gate(BestOfN(3), threshold=1e9, max_rounds=2),
    Then(BestOfN(3), BestOfN(2)),
    Budget(3, BestOfN(6)),
]
FINISHING = [BestOfN(5), NoiseSearch(4, rounds=2), Budget(3, BestOfN(6))]
REWARD = on_points(lambda x: -(x[:, 0] - 1.0).square())


def toy() -> Toy:
    return Toy(Mixture([[-2.0, 0.0], [1.0, 1.0]], [0.5, 0.4], [0.3, 0.7]))


def call(method: Method, pick: Pick | None, images: int = 1, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = guided(toy(), REWARD, method=method, select=pick, keep_images=True)
        generator = torch.Generator().manual_seed(3)
        return run("", 8, num_images_per_prompt=images, generator=generator, **given)


def finals(out: Any) -> dict[int, float]:
    """Rewards of everything that was finished."""
    found: dict[int, float] = {}
    for row in out.report.trace.of("score"):
        if not row["preview"]:
            found |= zip(row["particle"], row["reward"], strict=True)
    return found


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("images", [1, 2])
def test_best_is_the_default_bit_for_bit(method: Method, images: int) -> None:
    plain, chosen = call(method, None, images), call(method, Best(), images)
    assert torch.equal(plain.images, chosen.images)
    assert plain.rewards == chosen.rewards
    assert plain.report.chosen == chosen.report.chosen
    assert plain.report.trace.events == chosen.report.trace.events


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("pick", [Quantile(n_eff=2), SoftBest(1.0), Pessimistic(1.0), Diverse()])
def test_rewards_are_those_of_what_is_returned(method: Method, pick: Pick) -> None:
    out = call(method, pick, 2, output_type="pt")
    assert len(set(out.report.chosen)) == len(out.images) == 2
    torch.testing.assert_close(
        torch.tensor(out.rewards), REWARD(out.images.float(), ["", ""]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("method", FINISHING, ids=repr)
def test_a_quantile_of_all_that_was_finished(method: Method) -> None:
    out = call(method, Quantile(q=0.5))
    scores = finals(out)
    ranked = sorted(scores, key=lambda k: -scores[k])
    place = len(scores) - 1 - -(-(len(scores) - 1) // 2)
    ((_, particle),) = out.report.chosen
    assert particle == ranked[place]
    assert out.rewards == [scores[particle]]


def test_draws_come_from_the_calls_seed() -> None:
    first, second = (call(BestOfN(8), SoftBest(2.0)) for _ in range(2))
    assert first.report.chosen == second.report.chosen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = guided(toy(), REWARD, method=BestOfN(8), select=SoftBest(5.0))
        seeds = [torch.Generator().manual_seed(k) for k in range(12)]
        particles = {run("", 4, generator=g).report.chosen[0] for g in seeds}
    assert len(particles) > 2


def test_lanes_do_not_change_what_is_drawn() -> None:
    chosen = []
    for width in (1, 3):
        run = guided(toy(), REWARD, method=BestOfN(6), select=SoftBest(2.0), lane_width=width)
        chosen.append(run("", 4, generator=torch.Generator().manual_seed(1)).report.chosen)
    assert chosen[0] == chosen[1]


def test_several_images_that_differ() -> None:
    """The reward likes one mode; the best are all of it, a varied set is not."""
    best = call(BestOfN(8), None, 3, output_type="pt").images.flatten(1)
    varied = call(BestOfN(8), Diverse(3.0), 3, output_type="pt").images.flatten(1)
    assert torch.pdist(varied).mean() > 2 * torch.pdist(best).mean()


def test_a_cut_by_a_pick_of_its_own() -> None:
    seen = []

    class Watched(Diverse):
        def choose(self, candidates: Candidates, count: int) -> list[int]:
            seen.append((len(candidates), count, candidates.features is not None))
            return super().choose(candidates, count)

    out = call(Prune(6, (3,), (0.5,), select=Watched(1.0)), None)
    assert seen == [(6, 3, True)]
    assert out.rewards == [max(finals(out).values())]


@pytest.mark.parametrize("method", [SMC(4, choose="sample"), Tree(4, compute=4, choose="sample")])
def test_a_method_that_draws_its_winners_has_no_pick(method: Method) -> None:
    with pytest.raises(ValueError, match="choose='sample' with select="):
        call(method, Quantile(n_eff=2))


def test_the_report_says_how_was_chosen() -> None:
    out = call(BestOfN(3), Quantile(n_eff=2))
    assert "select Quantile(n_eff=2" in str(out.report)
    assert "select" not in str(call(BestOfN(3), None).report)


def test_what_is_no_pick_is_refused() -> None:
    with pytest.raises(ValueError, match="select='best'"):
        guided(toy(), REWARD, select="best")  # pyright: ignore[reportArgumentType]


def test_a_pick_can_be_exchanged() -> None:
    run = guided(toy(), REWARD)
    run.select = Quantile(n_eff=2)
    assert run.select == Quantile(n_eff=2)
    with pytest.raises(ValueError, match="select=3"):
        run.select = 3


# the picking of a call


def test_flagged_come_last_under_every_pick() -> None:
    ids = [(0, k) for k in range(5)]
    for pick in (Best(), Quantile(q=0.0), SoftBest(), Pessimistic(), Diverse()):
        picking = Picking(pick)
        picking.look(torch.rand(5, 3, 8, 8), ids, None)
        values = [9.0, 1.0, 2.0, 8.0, 3.0]
        for count in range(1, 6):
            rows = picking.rows(ids, values, {(0, 0), (0, 3)}, count)
            assert len(set(rows)) == count
            assert set(rows[:3]) <= {1, 2, 4}
            assert rows[3:] == [0, 3][: max(0, count - 3)]


def test_prompts_are_chosen_for_apart() -> None:
    ids = [(p, k) for p in range(2) for k in range(6)]
    values = torch.randn(12, generator=torch.Generator().manual_seed(0)).tolist()
    picking = Picking(SoftBest(1.0), (5, 6))
    both = picking.rows(ids, values, (), 2)
    alone = Picking(SoftBest(1.0), (5, 6)).rows(ids[6:], values[6:], (), 2)
    assert both[2:] == [6 + row for row in alone]


def test_candidates_that_were_never_seen_come_last() -> None:
    ids = [(0, k) for k in range(3)]
    picking = Picking(Diverse())
    picking.look(torch.rand(2, 3, 8, 8), ids[1:], None)
    assert picking.rows(ids, [9.0, 1.0, 2.0], (), 1) == [2]


def test_a_pick_that_does_not_choose_what_it_should() -> None:
    class Broken(Pick):
        def choose(self, candidates: Candidates, count: int) -> list[int]:
            return [0] * count

    with pytest.raises(SteerError, match="2 different rows"):
        Picking(Broken()).rows([(0, k) for k in range(4)], [1.0] * 4, (), 2)


def test_what_is_no_picture_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="compares pictures"):
        Picking(Diverse()).look(["a mesh"], [(0, 0)], None)


def test_picks_that_do_not_look_keep_nothing() -> None:
    def fail(images: Tensor) -> Tensor:
        raise AssertionError

    pick = Quantile(n_eff=2)
    object.__setattr__(pick, "look", fail)
    Picking(pick).look(torch.rand(1, 3, 4, 4), [(0, 0)], None)
