"""Pilot runs through the user's own pipeline, and the plans that they support."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from steer.core.costs import ROWS, Costs, Work
from steer.core.errors import UnsupportedSchedulerError, first_line
from steer.core.seeds import prompt_seed
from steer.core.types import Reward
from steer.driver.call import Call
from steer.driver.decoding.previews import PreviewDecoder
from steer.driver.facts import quiet
from steer.pipeline.pilot_runs import model_name
from steer.pipeline.planning.asked import check_prompts, decoders_of, windows_of
from steer.pipeline.planning.choice import Chooser, choose_decoder
from steer.pipeline.planning.kinds import Kind, Window, kinds_of
from steer.pipeline.planning.knowledge import crowds, foresight, shorter
from steer.pipeline.planning.pilots import EVENT, pilot_method
from steer.pipeline.planning.plans import Plans, rising
from steer.pipeline.planning.records import Records
from steer.pipeline.planning.replay import Pool, Pools
from steer.pipeline.planning.words import told
from steer.rewards.parts import check_absolute, identity


BUDGETS = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TAKEN = ("prompt", "generator", "method", "compute", "num_images_per_prompt", "output_type")


def calibrate(
    guided: Any,
    prompts: Sequence[str],
    *,
    n: int = 16,
    seed: int = 0,
    budgets: Sequence[float] = BUDGETS,
    windows: Sequence[Window] = (),
    previews: Sequence[str] = (),
    out: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    **call: Any,
) -> Plans:
    """Learn from pilot runs which plan a bare `compute=` should stand for.

        guided = steer.guided(pipe, "hpsv2", judge="cyclereward")
        plans = steer.calibrate(guided, prompts, out="pilots.jsonl", num_inference_steps=30)
        plans.save("plans.json")

    Every prompt gets `n` particles in every step, with previews scored on the way, the same as
    drafts (a few strides, then every step), and with fewer steps to the end; on request also
    guided, and with previews by other decoders. All plans of best-of-N, short runs, pruning and
    drafts are then replayed on these recordings at every budget, and the best by the judge is
    taken; where several are within a standard error of it, the cheapest. What this costs is told
    before it begins.

    Args:
        guided: A guided pipeline: its pipeline, reward, first judge and `compute_unit` are used,
            not its method. Without a judge, the reward itself is held for one.
        prompts: Drawn as those that will be served, at least 4; some 32 tell plans apart.
        n: Particles per prompt; no plan with more is looked at.
        seed: Prompt i starts from a generator seeded with `seed + i`.
        budgets: For which budgets to plan, in plain calls.
        windows: Where to look at guidance by the reward's gradient, such as `[(0.5, 0.95)]`:
            fractions of the steps, as `Guide(when=between(0.5, 0.95))` has them. Every kind of
            pilots is sampled again for each, with gradients, which cost more than steps on large
            models. None by default: guidance also finds what fools a reward, so give a judge.
        previews: Decoders of previews to look at beside the guided pipeline's own, as
            `guided(preview=)` takes them by name, such as `["tiny"]`: pilots with previews are
            sampled again for each.
        out: A `.jsonl` file where pilots are kept as they come: the same call continues after an
            interruption.
        tell: Takes the line that says what it will cost; on stderr by default.
        **call: What else the pipeline is given: the very settings that will be used
            (`num_inference_steps`, `guidance_scale`, `height`, ...).

    Returns:
        `Plans`, for `steer.guided(..., plans=)`.

    Raises:
        ValueError: Fewer than 4 prompts, an `n` below 2, no budgets, call arguments that are set
            here, a reward or judge that only ranks candidates, windows without a step, a decoder
            that does not fit.
        RewardError: `windows` with a reward that has no gradient.
        RecordError: `out` is something else, or of other pilots.
        UnsupportedPipelineError: No search fits into the pipeline's loop.
    """
    study = Study.of(guided, prompts, n=n, seed=seed, call=call, windows=windows, previews=previews)
    budgets = rising(budgets)
    records = Records(study.about(), None if out is None else Path(out))
    with records.open():
        (tell or _tell)(told(study.work, study.steps, len(study.prompts), n))
        study.sample(records)
    return study.plans(records, budgets)


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


@dataclass(eq=False)
class Study:
    """Pilots of all prompts and kinds, those that are there and those that are missing.

    Attributes:
        guided: The guided pipeline.
        prompts: What is drawn.
        n: Particles per prompt.
        seed: Of the first prompt.
        call: Further arguments of the pipeline's calls.
        asked: Denoising steps asked for.
        steps: Denoiser calls that they come to; those asked for until a call has told.
        windows: Where guided pilots are guided.
        decoders: Further decoders of previews by name.
        costs: What one of each cost, by the name of the decoder of previews; empty for the own.
        unsampled: Kinds that the scheduler does not allow, with its word on it.
    """

    guided: Any
    prompts: list[str]
    n: int
    seed: int
    call: Mapping[str, Any]
    asked: int
    steps: int
    windows: tuple[Window, ...] = ()
    decoders: Mapping[str, PreviewDecoder | None] = field(default_factory=dict)
    costs: dict[str, Costs] = field(default_factory=dict)
    unsampled: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        guided: Any,
        prompts: Sequence[str],
        *,
        n: int,
        seed: int,
        call: Mapping[str, Any],
        windows: Sequence[Window] = (),
        previews: Sequence[str] = (),
    ) -> Study:
        """A study, its arguments checked."""
        check_prompts(prompts, n)
        taken = [name for name in _TAKEN if name in call]
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: set by the pilots themselves (n particles per prompt, seeded "
                "by seed=); leave it out"
            )
        check_absolute(guided.reward, "plans")
        for judge in guided.judges[:1]:
            check_absolute(judge, "plans")
        steps = Call(guided.pipe, (), {**call, "prompt": prompts[0]}).steps
        found = windows_of(windows, steps, guided.reward)
        decoders = decoders_of(previews, guided.pipe)
        return cls(guided, list(prompts), n, seed, call, steps, steps, found, decoders)

    @property
    def judge(self) -> Reward | None:
        """The held-out reward that chooses plans."""
        return next(iter(self.guided.judges), None)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The ways that pilots are sampled in; the full one first, which tells the steps."""
        found = kinds_of(self.steps, self.windows, tuple(self.decoders))
        return tuple(kind for kind in found if kind.name not in self.unsampled)

    @property
    def work(self) -> Work:
        """What all pilots spend."""
        each = [kind.work(self.n, self.judge is not None) for kind in self.kinds]
        return sum(each, Work()) * len(self.prompts)

    def about(self) -> dict[str, Any]:
        """What the pilots depend on, for their file."""
        reward, version = identity(self.guided.reward)
        shown_by = self.guided.preview
        return {
            "pipeline": type(self.guided.pipe).__name__,
            "preview": None if shown_by is None else shown_by.name,
            "model": model_name(self.guided.pipe),
            "reward": reward,
            "version": version,
            "judge": self.judge.name if self.judge is not None else "",
            "steps": self.asked,
            "n": self.n,
            "seed": self.seed,
            "call": {name: _told_of(value) for name, value in self.call.items()},
            "prompts": self.prompts,
        }

    def sample(self, records: Records) -> None:
        """Sample the pilots that are missing, under a progress bar in denoiser rows."""
        options: dict[str, Any] = {"unit": "row", "desc": "pilots", "disable": None}
        with quiet(self.guided.pipe), tqdm(total=self.work.rows, **options) as bar:
            for index in range(len(self.prompts)):
                bar.update(self._sample_kind(records, index, self.kinds[0]))
                for kind in self.kinds[1:]:
                    bar.update(self._sample_kind(records, index, kind))
                bar.total = self.work.rows

    def _sample_kind(self, records: Records, index: int, kind: Kind) -> int:
        """One prompt's pilots of a kind, unless they are there; their denoiser rows."""
        unit = records.get(index, kind.name)
        if unit is None:
            unit = self._run(index, kind)
            if unit.get("count", self.steps) != self.steps:  # the solver asks twice per step
                self.steps = unit["count"]
                unit = self._run(index, self.kinds[0])
            records.add(index, kind.name, unit)
        if "unsampled" in unit:
            self.unsampled[kind.name] = unit["unsampled"]
            return 0
        self.steps = unit["count"]
        rows = self.guided.compute_unit == "rows"
        self.costs[kind.preview] = ROWS if rows else Costs(**unit["costs"])
        return kind.rows * self.n

    def _run(self, index: int, kind: Kind) -> dict[str, Any]:
        """What the pilots of one prompt came to."""
        generator = torch.Generator().manual_seed(prompt_seed(self.seed, index))
        given = {**self.call, "prompt": self.prompts[index], "generator": generator}
        method = pilot_method(kind, self.n, self.judge)
        try:
            with self._showing(kind.preview):
                self.guided(**given, method=method, output_type="latent")
        except UnsupportedSchedulerError as error:
            if kind.strides is None:
                raise
            return {"unsampled": first_line(error)}
        (found,) = self.guided.report.trace.of(EVENT)
        return {key: found[key] for key in ("count", "costs", "previews", "rewards", "judged")}

    @contextmanager
    def _showing(self, preview: str) -> Iterator[None]:
        """Previews by another decoder for a while."""
        own = self.guided.preview
        self.guided.preview = self.decoders.get(preview, own)
        try:
            yield
        finally:
            self.guided.preview = own

    def plans(self, records: Records, budgets: Sequence[float]) -> Plans:
        """The plans that whole records support."""
        pools = Pools(Pool.of(kind, records.of(kind.name)) for kind in self.kinds)
        models = self.guided.models
        each = 1 if models is None else models.cost(self.steps)
        choosers = {
            name: Chooser(pools.shown_by(name), budgets, self.costs[name].blended(each))
            for name in ("", *self.decoders)
        }
        preview, decoders = choose_decoder(choosers, choosers[""].told_apart(budgets))
        chooser = choosers[preview]
        budgets = chooser.told_apart(budgets)
        about = self.about()
        return Plans(
            plans=tuple(chooser.at(budget) for budget in budgets),
            pipeline=about["pipeline"],
            model=about["model"],
            asked=self.asked,
            steps=self.steps,
            reward=about["reward"],
            version=about["version"],
            judge=about["judge"] or about["reward"],
            prompts=len(self.prompts),
            n=self.n,
            costs=chooser.costs,
            preview=preview,
            decoders=decoders,
            call={**about["call"], "seed": self.seed},
            shorter=shorter(pools),
            foresight=foresight(pools),
            crowds=crowds(pools.by_name["full"]),
            unsampled=dict(self.unsampled),
        )


def _told_of(value: Any) -> Any:
    """An argument as a file can hold and compare it: of what is no text or number, its kind."""
    simple = value is None or isinstance(value, str | bool | int | float)
    return value if simple else type(value).__name__
