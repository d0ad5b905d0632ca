"""Plans: what a bare `compute=` stands for on one pipeline with one reward, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from steer.core.checks import plain_calls
from steer.core.costs import Costs
from steer.core.errors import PlansError
from steer.core.files.atomic import plain, write_json
from steer.core.files.text import read_json
from steer.core.intervals import Estimate
from steer.core.types import Reward
from steer.core.warn import warn
from steer.methods.guidance.guide import Guide
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.methods.text import parse_method
from steer.pipeline.planning.choice import Decoder, Plan
from steer.pipeline.planning.found import Found
from steer.pipeline.planning.knowledge import Crowd, Foresight, Shorter
from steer.pipeline.planning.words import described
from steer.rewards.parts import identity
from steer.rewards.thresholds.scores import label
from steer.search.method import Method


_FORMAT = "steer-plans/1"
_EXAMPLE = "steer.calibrate(guided, prompts, num_inference_steps=20).save('plans.json')"


@dataclass(frozen=True, kw_only=True)
class Plans(Found):
    """What a bare `compute=` is best spent on, learnt from pilot runs: see `Found` for the fields.

    plans = steer.calibrate(steer.guided(pipe, "hpsv2", judge="pickscore"), prompts)
    plans.save("plans.json")
    steer.guided(pipe, "hpsv2", compute=4, plans="plans.json")
    """

    def at(
        self, compute: float, costs: Costs | None = None, *, lane: int = 1, drafts: bool = True
    ) -> Method:
        """The plan of the largest calibrated budget that is not above `compute`.

        Args:
            compute: Plain calls, at least 1.
            costs: What things cost now; a plan that is dearer than `compute` by them gives way to
                the next smaller one. As they were when they are left out.
            lane: Particles that a denoiser call has in any case: populations that are no multiples
                of it are left out.
            drafts: Whether the call's solver can begin in the middle of the schedule; drafts are
                left out where it cannot.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        now = costs or self.costs
        for plan in sorted(self.plans, key=lambda plan: -plan.budget):
            method = plan.method
            even = all(size % lane == 0 for size in method.populations)
            inside = method.method if isinstance(method, Guide) else method
            begins = isinstance(inside, Prune) and inside.strides is not None
            fits = plan.budget <= compute and now.fits(method.work(self.steps), compute, self.steps)
            if fits and even and (drafts or not begins):
                return method
        return BestOfN(lane)

    def check(self, pipe: Any, reward: Reward, asked: int | None = None) -> None:
        """Refuse another pipeline, reward or number of steps than the pilots had.

        Args:
            pipe: The pipeline.
            reward: What is optimised.
            asked: Denoising steps asked for.

        Raises:
            PlansError: They differ; both are named.
        """
        name = type(pipe).__name__
        if name != self.pipeline:
            raise self._differ(f"for {self.pipeline}, and the pipeline is {name}")
        now, version = identity(reward)
        other = version and self.version and version != self.version
        if now != self.reward or other:
            was = label(self.reward, self.version)
            raise self._differ(f"with reward {was}, and the reward in use is {label(now, version)}")
        if asked is not None and asked != self.asked:
            raise self._differ(f"with {self.asked} steps, and this call has {asked}")

    def check_steps(self, steps: int) -> None:
        """Refuse a call that makes another number of denoiser calls; PlansError."""
        if steps != self.steps:
            raise self._differ(f"with {self.steps} denoiser calls, and this call makes {steps}")

    def check_guidance(self, scale: float) -> None:
        """Warn of another guidance scale than the pilots were given: short runs depend on it.

        Args:
            scale: Of classifier-free guidance in this call, 1 for none.
        """
        was = self.call.get("true_cfg_scale", self.call.get("guidance_scale"))
        if isinstance(was, int | float) and max(was, 1) != scale:
            warn(
                f"plans: calibrated with guidance {was:g}, and this call has {scale:g}, at which "
                "short runs and drafts are worth something else; calibrate with it",
                stacklevel=9,
            )

    def _differ(self, what: str) -> PlansError:
        return PlansError(f"plans: made {what}; calibrate again, or leave plans out")

    def __str__(self) -> str:
        """The plans as a table, and what the pilots say, for people."""
        return described(self)

    def page(self, path: str | Path) -> None:
        """Write one HTML page with the plans and the curves behind them."""
        from steer.pipeline.planning.page import write_page

        write_page(self, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; methods as they are written."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        plans = [{**asdict(plan), "method": repr(plan.method)} for plan in self.plans]
        rows = {name: [asdict(row) for row in data[name]] for name in _ROWS}
        return plain(
            {"format": _FORMAT, **data, **rows, "plans": plans, "costs": asdict(self.costs)}
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plans:
        """What `to_dict` gave; PlansError for anything else."""
        values = dict(data)
        if values.pop("format", None) != _FORMAT:
            raise PlansError(f"not a {_FORMAT} file: write one with {_EXAMPLE}")
        try:
            plans = [{**row, "method": parse_method(row["method"])} for row in values["plans"]]
            values["plans"] = tuple(_read(Plan, row) for row in plans)
            values |= {
                name: tuple(_read(kind, row) for row in values.get(name, ()))
                for name, kind in _ROWS.items()
            }
            values["costs"] = _read(Costs, values["costs"])
            made = cls(**values)
            made._check_numbers()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlansError(f"a damaged plans file: {error}") from error
        return made

    def _check_numbers(self) -> None:
        for name in ("asked", "steps", "prompts", "n"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}")
        if not self.plans or not self.crowds:
            raise ValueError("no plans")
        for plan in self.plans:
            plain_calls(plan.budget)
        if not self.costs.row > 0:
            raise ValueError(f"row={self.costs.row!r}")

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plans:
        """Read what `save` wrote; PlansError if it cannot be read."""
        try:
            data = read_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PlansError(
                f"plans={str(path)!r}: cannot be read ({reason}); write one with {_EXAMPLE}"
            ) from error
        if not isinstance(data, Mapping):
            raise PlansError(f"plans={str(path)!r}: not a plans file; write one with {_EXAMPLE}")
        try:
            return cls.from_dict(data)
        except PlansError as error:
            raise PlansError(f"plans={str(path)!r}: {error}") from error


_ROWS: dict[str, type[Any]] = {
    "shorter": Shorter,
    "foresight": Foresight,
    "crowds": Crowd,
    "decoders": Decoder,
}


def _read(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """A dataclass from what `asdict` gave; intervals inside it too."""
    given = {}
    for f in fields(kind):
        value = row[f.name]
        given[f.name] = Estimate(**value) if f.type == "Estimate" else value
    assert is_dataclass(kind)
    return kind(**given)


def as_plans(value: Plans | str | Path | None) -> Plans | None:
    """Plans as `guided` takes them; ValueError for something else."""
    if value is None or isinstance(value, Plans):
        return value
    if isinstance(value, str | Path):
        return Plans.load(value)
    raise ValueError(
        f"plans={value!r}: must be what steer.calibrate returns, or the path of a saved one"
    )


def rising(budgets: Sequence[float]) -> tuple[float, ...]:
    """Budgets, rising, each once; ValueError where one is none."""
    if isinstance(budgets, str) or not isinstance(budgets, Sequence) or not budgets:
        raise ValueError(f"budgets={budgets!r}: a list of plain calls, such as (2, 4, 8)")
    for budget in budgets:
        plain_calls(budget)
    return tuple(sorted({float(budget) for budget in budgets}))
