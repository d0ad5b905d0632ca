"""`Solver`: the user's scheduler on populations, against plain loops of the same scheduler."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer.core.errors import UnsupportedSchedulerError
from steer.core.seeds import row_seed
from steer.driver.grid import Schedule
from steer.driver.solver import Solver
from steer.driver.solver_state import ignores_generator


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")

STEPS = 8
LATENT = (4, 3, 3)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V0 = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}

DETERMINISTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", SD),
    "euler": ("EulerDiscreteScheduler", SD),
    "dpm2": ("DPMSolverMultistepScheduler", SD),
    "dpm3": ("DPMSolverMultistepScheduler", {**SD, "solver_order": 3}),
    "dpm2-karras": ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    "dpm2-flow": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
    "dpm-single": ("DPMSolverSinglestepScheduler", {**SD, "lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", SD),
    "deis": ("DEISMultistepScheduler", SD),
    "pndm": ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
    "pndm-prk": ("PNDMScheduler", SD),
    "lms": ("LMSDiscreteScheduler", SD),
    "heun": ("HeunDiscreteScheduler", SD),
    "kdpm2": ("KDPM2DiscreteScheduler", SD),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
STOCHASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim-eta": ("DDIMScheduler", SD),
    "euler-a": ("EulerAncestralDiscreteScheduler", SD),
    "sde-dpm": ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", SD),
    "ddpm": ("DDPMScheduler", SD),
    "lcm": ("LCMScheduler", SD),
    "tcd": ("TCDScheduler", SD),
    "sa": ("SASolverScheduler", SD),
    "flow-sde": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow-lcm": ("FlowMatchLCMScheduler", {}),
}
if ignores_generator(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)):
    del STOCHASTIC["flow-sde"]  # refused: see below
ALL = {**DETERMINISTIC, **STOCHASTIC}
KWARGS: dict[str, dict[str, Any]] = {"ddim-eta": {"eta": 0.7}, "tcd": {"eta": 0.3}}
RESTARTABLE = ["ddim", "euler", "dpm2", "dpm3", "unipc", "deis", "flow"]


def make(name: str, steps: int = STEPS) -> Any:
    cls, config = ALL[name]
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    """A smooth stand-in that treats every row for itself."""
    return torch.tanh(0.7 * x.roll(1, -1) - 0.2 * x) + 0.1 * torch.cos(t.float() / 300)


def start(rows: int, scheduler: Any, seed: int = 5) -> Tensor:
    noise = torch.randn(rows, *LATENT, generator=torch.Generator().manual_seed(seed))
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def scaled(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def plain(name: str, x: Tensor, **kwargs: Any) -> Tensor:
    """The loop as a pipeline writes it."""
    scheduler = make(name)
    if "generator" not in scheduler.step.__code__.co_varnames:
        kwargs.pop("generator", None)
    for t in scheduler.timesteps:
        output = denoiser(scaled(scheduler, x, t), t)
        x = scheduler.step(output, t, x, **kwargs, return_dict=False)[0]
    return x


def solve(solver: Solver, schedule: Any, x: Tensor, ids: list[tuple[int, int]]) -> Tensor:
    for step in schedule:
        output = denoiser(solver.scale_model_input(step, x), step.t)
        x = solver.step(step, x, output, ids)
    return x


def solving(name: str, plain_rows: int, images: int = 1, **kwargs: Any) -> tuple[Solver, Schedule]:
    scheduler = make(name)
    options = {**KWARGS.get(name, {}), **kwargs}
    solver = Solver(scheduler, plain_rows=plain_rows, images=images, step_kwargs=options, seed=3)
    return solver, Schedule.from_scheduler(scheduler)


def names(prompts: int, particles: int) -> list[tuple[int, int]]:
    return [(p, k) for p in range(prompts) for k in range(particles)]


@pytest.mark.parametrize("name", ALL)
def test_plain_rows_are_the_plain_loop(name: str) -> None:
    x = start(4, make(name))
    expected = plain(name, x, **KWARGS.get(name, {}), generator=torch.Generator().manual_seed(1))
    solver, schedule = solving(name, 4, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(solve(solver, schedule, x, names(2, 2)), expected)


@pytest.mark.sample
@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("kind", ["global", "list"])
def test_plain_rows_draw_from_whatever_the_user_gave(name: str, kind: str) -> None:
    def generator() -> Any:
        torch.manual_seed(11)
        many = [torch.Generator().manual_seed(i) for i in range(2)]
        return many if kind == "list" else None

    x = start(2, make(name))
    expected = plain(name, x, **KWARGS.get(name, {}), generator=generator())
    both = torch.cat([x, start(4, make(name), seed=9)])[[0, 2, 3, 1, 4, 5]]
    solver, schedule = solving(name, 2, generator=generator())
    got = solve(solver, schedule, both, names(2, 3))
    assert torch.equal(got[[0, 3]], expected)


@pytest.mark.parametrize("name", sorted({*STOCHASTIC} - {"sde-dpm", "sa", "kdpm2-a"}))
def test_a_step_that_others_take_again_leaves_the_plain_rows_noise_alone(name: str) -> None:
    """As rejected proposals of RBF do: children of a row move from a step that it took itself."""
    x = start(2, make(name))
    expected = plain(name, x, **KWARGS.get(name, {}), generator=torch.Generator().manual_seed(1))
    solver, schedule = solving(name, 2, generator=torch.Generator().manual_seed(1))
    for step in schedule:
        output = denoiser(solver.scale_model_input(step, x), step.t)
        moved = solver.step(step, x, output, [(0, 0), (1, 0)])
        tries = [solver.step(step, x[:1], output[:1], [(0, 7)]) for _ in range(2)]
        assert torch.equal(*tries)
        x = moved
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ALL)
def test_pruning_equals_running_the_row_alone(name: str) -> None:
    """9 -> 4 -> 1: the winner ends where it ends alone, whether a plain row or not."""
    x = start(9, make(name))
    ids = names(1, 9)
    for winner in (0, 5):
        solver, schedule = solving(name, 1, generator=torch.Generator().manual_seed(1))
        rows, live = x, list(ids)
        for step in schedule:
            if step.index in (2, 5):
                keep = [live.index((0, k)) for k in ([7, winner, 2, 3], [winner])[step.index // 5]]
                solver.gather(keep)
                rows, live = rows[keep], [live[k] for k in keep]
            output = denoiser(solver.scale_model_input(step, rows), step.t)
            rows = solver.step(step, rows, output, live)
        alone, schedule = solving(name, 1, generator=torch.Generator().manual_seed(1))
        expected = solve(alone, schedule, x[[winner]], [(0, winner)])
        torch.testing.assert_close(rows, expected, rtol=0, atol=0)
        if winner == 0:
            generator = torch.Generator().manual_seed(1)
            loop = plain(name, x[:1], **KWARGS.get(name, {}), generator=generator)
            assert torch.equal(rows, loop)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_swapping_rows_and_back_changes_nothing(name: str) -> None:
    """Trap 4: DPM++ of order two is garbage here unless its history moves with the rows."""
    x = start(3, make(name))
    expected = plain(name, x)
    solver, schedule = solving(name, 1)
    rows, ids = x, names(1, 3)
    for step in schedule:
        if step.index in (3, len(schedule) - 1):
            solver.gather(torch.tensor([2, 1, 0]))
            rows = rows.flip(0)
        rows = solver.step(step, rows, denoiser(solver.scale_model_input(step, rows), step.t), ids)
    torch.testing.assert_close(rows, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_duplicated_rows_share_the_past(name: str) -> None:
    """After `gather([0, 0])` both copies carry row 0's history."""
    x = start(2, make(name))
    solver, schedule = solving(name, 2)
    for step in schedule[:3]:
        x = solver.step(step, x, denoiser(solver.scale_model_input(step, x), step.t), names(2, 1))
    solver.gather([0, 0])
    twin, x = solver.copy(seed=1), x[[0, 0]]
    same = twin.copy(seed=1)
    output = denoiser(x, schedule[3].t)
    left = twin.step(schedule[3], x, output, [(0, 0), (0, 1)])
    right = same.step(schedule[3], x[:1].repeat(2, 1, 1, 1), output, [(0, 1), (0, 0)])
    torch.testing.assert_close(left, right.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_users_scheduler_is_untouched(name: str) -> None:
    scheduler = make(name)
    before = {k: copy.deepcopy(v) for k, v in vars(scheduler).items() if k != "tau_func"}
    schedule = Schedule.from_scheduler(scheduler)
    solver = Solver(scheduler, plain_rows=1, step_kwargs=KWARGS.get(name, {}))
    solve(solver, schedule, start(3, scheduler), names(1, 3))
    after = vars(scheduler)
    assert set(after) - {"tau_func"} == set(before)
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else None
        assert same or repr(value) == repr(after[key]), key


@pytest.mark.parametrize("name", RESTARTABLE)
def test_a_jump_is_a_start_in_the_middle(name: str) -> None:
    """As an image-to-image pipeline starts there: `set_begin_index` on a fresh scheduler."""
    solver, schedule = solving(name, 1)
    x = start(1, make(name))
    first = solve(solver, schedule[:6], x, [(0, 0)])
    back = solve(solving(name, 1)[0], schedule[3:], first, [(0, 0)])
    if not solver.remembers:
        assert torch.equal(solve(solver, schedule[3:], first, [(0, 0)]), back)
    scheduler = make(name)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(3)
    expected = first
    for t in scheduler.timesteps[3:]:
        output = denoiser(scaled(scheduler, expected, t), t)
        expected = scheduler.step(output, t, expected, return_dict=False)[0]
    assert torch.equal(back, expected)


REWINDS_REFUSED = ["pndm", "lms", "heun", "dpm2", "dpm3", "dpm2-flow", "unipc", "deis", "sde-dpm"]


@pytest.mark.parametrize("to", [1, 3, 5])
@pytest.mark.parametrize("name", REWINDS_REFUSED)
def test_a_jump_that_loses_history_is_refused(name: str, to: int) -> None:
    """Back, again, or ahead: never silently with another history, or with none."""
    solver, schedule = solving(name, 1)
    x = solve(solver, schedule[:4], start(1, make(name)), [(0, 0)])
    before = solver.copy()
    way = "new solver" if name in RESTARTABLE else "DDIMScheduler"
    with pytest.raises(
        UnsupportedSchedulerError, match=f"cannot go from step 3 to step {to}.*{way}"
    ):
        solver.step(schedule[to], x, x, [(0, 0)])
    after, expected = solver.copy(), before.step(schedule[4], x, x, [(0, 0)])
    assert torch.equal(after.step(schedule[4], x, x, [(0, 0)]), expected)  # refused, not harmed
    solver.step(schedule[0], x, x, [(0, 0)])  # the start is always sound


@pytest.mark.parametrize("name", ["pndm", "lms"])
def test_some_solvers_cannot_begin_in_the_middle(name: str) -> None:
    solver, schedule = solving(name, 1)
    x = start(1, make(name))
    with pytest.raises(UnsupportedSchedulerError, match="cannot begin at step 3"):
        solver.step(schedule[3], x, x, [(0, 0)])


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(["dpm2", "dpm3", "dpm2-flow", "unipc", "deis", "pndm"]),
    orders=st.lists(st.permutations(range(4)), min_size=STEPS + 1, max_size=STEPS + 1),
)
def test_histories_follow_any_permutation(name: str, orders: list[list[int]]) -> None:
    """Rows shuffled before every step end where they end alone, each with its own history."""
    x = start(4, make(name))
    expected = [plain(name, x[[row]]) for row in range(4)]
    solver, schedule = solving(name, 1)
    rows, ids = x, names(1, 4)
    for step, order in zip(schedule, orders, strict=False):
        solver.gather(order)
        rows, ids = rows[order], [ids[row] for row in order]
        rows = solver.step(step, rows, denoiser(solver.scale_model_input(step, rows), step.t), ids)
    for row, (_, particle) in zip(rows, ids, strict=True):
        torch.testing.assert_close(row[None], expected[particle], rtol=1e-5, atol=1e-6)


def test_heun_restarts_at_whole_steps() -> None:
    solver, schedule = solving("heun", 1)
    x = solve(solver, schedule[:7], start(1, make("heun")), [(0, 0)])
    fresh, _ = solving("heun", 1)
    again = solve(solver, schedule[4:], x, [(0, 0)])
    assert torch.equal(again, solve(fresh, schedule[4:], x, [(0, 0)]))


def test_image_to_image_starts_at_its_offset() -> None:
    scheduler = make("dpm2")
    part = scheduler.timesteps[3:]
    schedule = Schedule.from_scheduler(scheduler, part)
    solver = Solver(scheduler, plain_rows=1, offset=schedule.offset)
    x = start(1, scheduler)
    got = solve(solver, schedule, x, [(0, 0)])
    plain_scheduler = make("dpm2")
    plain_scheduler.set_begin_index(3)
    for t in part:
        x = plain_scheduler.step(denoiser(x, t), t, x, return_dict=False)[0]
    assert schedule.offset == 3
    assert torch.equal(got, x)


@settings(deadline=None, max_examples=15)
@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=6))
def test_noise_depends_on_the_name_alone(ids: set[tuple[int, int]]) -> None:
    """Batch invariance: a row draws the same noise whoever else is in the population."""
    row = (1, 12)
    solver, schedule = solving("euler-a", 3, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(len(ids) + 1, *LATENT)
    got = solver.step(schedule[2], x, x, [*sorted(ids), row])[-1]
    alone, _ = solving("euler-a", 3)
    torch.testing.assert_close(got, alone.step(schedule[2], x[:1], x[:1], [row])[0], rtol=0, atol=0)


def test_rows_beyond_the_plain_ones_differ_by_step_particle_prompt_and_seed() -> None:
    seeds = {
        row_seed(s, p, k, i) for s in range(3) for p in range(3) for k in range(3) for i in (0, 1)
    }
    assert len(seeds) == 54
    solver, schedule = solving("euler-a", 1)
    x = torch.zeros(3, *LATENT)
    one = solver.step(schedule[0], x, x, names(1, 3))
    two = solver.step(schedule[1], x, x, names(1, 3))
    flat = torch.cat([one, two]).flatten(1)
    assert torch.unique(flat, dim=0).shape[0] == 6


def test_a_reseeded_copy_of_a_population_without_plain_rows() -> None:
    """The copy has no plain batch to pad: its rows stay where they were."""
    solver, schedule = solving("euler-a", 2)
    x = start(3, make("euler-a"))
    ids = [(0, 1), (0, 2), (1, 5)]
    for step in schedule[:2]:
        x = solver.step(step, x, denoiser(x, step.t), ids)
    got = solver.copy(seed=3).step(schedule[2], x, denoiser(x, schedule[2].t), ids)
    assert torch.equal(got, solver.step(schedule[2], x, denoiser(x, schedule[2].t), ids))


@pytest.mark.parametrize(
    "name", sorted({"ddim-eta", "sde-dpm", "flow-sde", "dpm2", "pndm"} & set(ALL))
)
def test_a_copy_looks_ahead_without_being_noticed(name: str) -> None:
    x = start(3, make(name))
    torch.manual_seed(4)
    solver, schedule = solving(name, 1)
    expected = solve(solver, schedule, x, names(1, 3))
    torch.manual_seed(4)
    solver, schedule = solving(name, 1)
    half = solve(solver, schedule[:3], x, names(1, 3))
    ahead = solve(solver.copy(), schedule[3:], half, names(1, 3))
    other = solve(solver.copy(seed=8), schedule[3:], half, names(1, 3))
    assert torch.equal(ahead, expected)
    assert torch.equal(solve(solver, schedule[3:], half, names(1, 3)), expected)
    assert torch.equal(other, expected) == (name in DETERMINISTIC)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_ddim_at_zero_terminal_snr_is_finite_and_right(prediction: str) -> None:
    """With eta=1 some grids make diffusers return NaN there; x' = alpha' x0 + sigma' noise."""
    broken = 0
    for count in (2, 4, 5, 8, 10, 20, 25, 40, 50, 100):
        scheduler = diffusers.DDIMScheduler(
            **{**SD, **V0, "prediction_type": prediction},
            timestep_spacing="trailing",
            clip_sample=False,
        )
        scheduler.set_timesteps(count)
        x = start(4, scheduler)
        t = scheduler.timesteps[0]
        output = denoiser(x, t)
        broken += bool(scheduler.step(output, t, x, eta=1.0).prev_sample.isnan().any())
        schedule = Schedule.from_scheduler(scheduler)
        kwargs = {"eta": 1.0, "generator": torch.Generator().manual_seed(2)}
        solver = Solver(scheduler, plain_rows=4, step_kwargs=kwargs)
        got = solver.step(schedule[0], x, output, names(4, 1))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        alpha = float(scheduler.alphas_cumprod[999 - 1000 // count])
        x0 = -output if prediction == "v_prediction" else output
        expected = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    assert 0 < broken < 10


def test_one_brownian_path_for_the_batch_is_refused_before_any_work() -> None:
    class Brownian(diffusers.EulerDiscreteScheduler):
        noise_sampler = None

    scheduler = Brownian()
    scheduler.set_timesteps(4)
    solver = Solver(scheduler, plain_rows=2)
    solver.check(2)
    with pytest.raises(UnsupportedSchedulerError, match="one Brownian path"):
        solver.check(3)


def test_schedulers_that_need_more_are_refused() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="old_pred_original_sample"):
        Solver(diffusers.CogVideoXDPMScheduler(), plain_rows=1)


def test_forgetting_to_gather_is_an_error() -> None:
    solver, schedule = solving("dpm2", 1)
    x = start(3, make("dpm2"))
    x = solver.step(schedule[0], x, x, names(1, 3))
    with pytest.raises(ValueError, match="call gather"):
        solver.step(schedule[1], x[:2], x[:2], names(1, 2))
    with pytest.raises(ValueError, match="different ids"):
        solver.step(schedule[1], x, x, [(0, 0), (0, 0), (0, 1)])
    with pytest.raises(ValueError, match="multiple"):
        solving("ddim", 3, 2)


class ForgetfulFlow(diffusers.FlowMatchEulerDiscreteScheduler):
    """Draws its noise as diffusers did before 0.39."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None
    ) -> Any:
        return (sample + torch.randn_like(sample),)


def test_noise_that_ignores_the_generator_is_refused() -> None:
    scheduler = ForgetfulFlow(stochastic_sampling=True)
    scheduler.set_timesteps(STEPS)
    with pytest.raises(UnsupportedSchedulerError, match=r"without the generator.*0\.39"):
        Solver(scheduler, plain_rows=1)
    quiet = ForgetfulFlow()
    quiet.set_timesteps(STEPS)
    Solver(quiet, plain_rows=1)
