"""Every method on every family of pipelines: does it run, is the ledger right, is identity kept.

The pipelines are the tests' tiny ones (random weights, real diffusers classes); work is counted at
the models themselves. One command writes the raw cells and the table in the docs:

    python benchmarks/family_table.py
    python benchmarks/family_table.py --render    # only the table, from the raw cells
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, headline, provenance, write_json
from torch import Tensor

import steer
from steer import methods as m
from steer.core.errors import SteerError
from steer.rewards.function import FunctionReward
from steer.search.method import Method


ROOT = Path(__file__).parent.parent
RAW = RESULTS / "families.json"
PAGE = ROOT / "docs" / "families.md"
STEPS = 6
TITLES = {
    "sd": "StableDiffusion",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux": "Flux",
    "pixart": "PixArt-Sigma",
    "sana": "Sana",
    "wan": "Wan (video)",
}
SCHEDULERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "flow": "FlowMatchEuler",
    "flow-dynamic": "FlowMatchEuler",
    "dpm++2m": "DPM++ 2M",
    "flow-dpm": "DPM++ 2M, flow",
    "flow-unipc": "UniPC, flow",
}
REASONS: dict[str, str] = {}
"""What an error says, in few words; an error that none of these fits stops the study."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        method: What runs, by family.
        plain: Settings at which it must be the plain call bit for bit, where there are such.
        covers: The exported name that the row stands for.
        note: What is special about the settings.
    """

    method: Callable[[str], Method]
    plain: Method | None = None
    covers: str = ""
    note: str = ""


def _of(method: Method, plain: Method | None = None, covers: str = "", note: str = "") -> Case:
    return Case(lambda _: method, plain, covers, note)


CASES: dict[str, Case] = {
    "BestOfN": _of(m.BestOfN(4), m.BestOfN(1)),
    "BestOfN, strides=2": _of(m.BestOfN(4, strides=2), covers="BestOfN"),
    "Adaptive": _of(m.Adaptive(4, price=0), m.Adaptive(1), note="as `price=0`"),
    "Prune": _of(m.Prune(4, (2, 1), (0.34, 0.67)), m.Prune(1, (1,), (0.5,))),
    "Prune, strides=2": _of(
        m.Prune(4, (2, 1), (0.5, 0.75), strides=2), m.Prune(1, (), (), strides=2), covers="Prune"
    ),
    "Gate": _of(m.Gate(m.BestOfN(2), math.inf, 2), m.Gate(m.BestOfN(1), -math.inf)),
    "Gate, with a calibration": Case(
        lambda family: m.Gate(m.BestOfN(2), calibration=_calibration(family), max_rounds=2),
        covers="Gate",
    ),
    "Budget": _of(m.Budget(3, m.BestOfN(8)), m.Budget(1, m.BestOfN(1))),
    "Then": _of(m.Then(m.BestOfN(2), m.NoiseOptimization(2)), m.Then(m.BestOfN(1), m.BestOfN(1))),
    "NoiseSearch": _of(m.NoiseSearch(n=2, rounds=2), m.NoiseSearch(n=1, rounds=1)),
    "NoiseSearch, evolution": _of(
        m.NoiseSearch(n=2, rounds=2, strategy="evolution"), covers="NoiseSearch"
    ),
    "NoiseSearch, paths": _of(
        m.NoiseSearch(n=2, rounds=2, strategy="paths", keep=1), covers="NoiseSearch"
    ),
    "NoiseOptimization": _of(m.NoiseOptimization(2, through=2)),
    "NoiseOptimization, zero-order": _of(
        m.NoiseOptimization(2, through=2, gradient=m.ZeroOrder(directions=2)),
        covers="NoiseOptimization",
    ),
    "NoiseOptimization, on a leash": _of(
        m.NoiseOptimization(2, through=2, ascent=m.Sphere(block=16), leash=1.0),
        covers="NoiseOptimization",
    ),
    "PCNL": _of(m.PCNL(m.BestOfN(2), chains=1, burn_in=1, thin=1, through=2)),
    "BestOfNGuidance": _of(m.BestOfNGuidance(3), m.BestOfNGuidance(1)),
    "LookaheadGuidance": _of(
        m.LookaheadGuidance(lookaheads=3, through=2), m.LookaheadGuidance(strength=0)
    ),
    "Guide": _of(m.Guide(m.Prune(4, (2,), (0.5,))), m.Guide(m.BestOfN(1), strength=0)),
    "Guide, through the denoiser": _of(
        m.Guide(m.BestOfN(2), when=steer.between(0.4, 0.7), through="denoiser"), covers="Guide"
    ),
    "SMC": _of(m.SMC(3)),
    "SMC, kernel='ddim'": _of(m.SMC(3, kernel="ddim"), covers="SMC"),
    "GradientProposal": _of(
        m.SMC(2, proposal=m.GradientProposal()), covers="SMC", note="as `SMC(proposal=...)`"
    ),
    "NoiseTilt": _of(m.SMC(2, kernel=m.NoiseTilt()), covers="SMC", note="as `SMC(kernel=...)`"),
    "Beam": _of(m.Beam(2)),
    "Blockwise": _of(m.Blockwise(2, block=2)),
    "RBF": _of(m.RBF(2)),
    "RBF, kernel='ddim'": _of(m.RBF(2, kernel="ddim"), covers="RBF"),
    "EvoSearch": _of(
        m.EvoSearch((2, 2, 1), at=(0.0, 0.5), elites=2), m.EvoSearch(1, at=(), elites=1)
    ),
    "DepthFirst": _of(m.DepthFirst(2, threshold=math.inf), m.DepthFirst(2, threshold=-math.inf)),
    "Tree": _of(m.Tree(4, batch=2)),
    "Tree, kernel='ddim'": _of(m.Tree(4, batch=2, kernel="ddim"), covers="Tree"),
}


def exported() -> list[str]:
    """The methods that steer has."""
    found = {name: getattr(m, name) for name in m.__all__}
    return [
        name
        for name, kind in found.items()
        if inspect.isclass(kind) and not inspect.isabstract(kind) and issubclass(kind, Method)
    ]


def cases() -> dict[str, Case]:
    """All rows: those above, and whatever else is exported at its own choice for four calls."""
    covered = {case.covers or name for name, case in CASES.items()}
    more = {
        name: _of(getattr(m, name).for_compute(4, STEPS), note="`for_compute(4)`")
        for name in exported()
        if name not in covered
    }
    return {**CASES, **more}


@dataclass
class Seen:
    """Work, counted where it is done."""

    rows: int = 0
    recorded: int = 0
    decodes: int = 0
    images: int = 0


@dataclass
class Cell:
    """One method on one family.

    Attributes:
        status: `"ok"` or `"refused"`.
        method: Its repr.
        rows, backward_rows, decodes, reward_calls, cfg_rows: The ledger's.
        cost: What the method said that it costs at most, in equivalent rows.
        ledger: Whether the ledger agrees with what was counted at the models.
        identity: Whether the one-particle settings gave the plain call, bit for bit.
        error: The whole message of a refusal.
    """

    family: str
    case: str
    status: str = "ok"
    method: str = ""
    rows: int = 0
    backward_rows: int = 0
    decodes: int = 0
    reward_calls: int = 0
    cfg_rows: int = 1
    cost: int = 0
    ledger: bool | None = None
    identity: bool | None = None
    error: str = ""
    seen: dict[str, int] = field(default_factory=dict)


def families() -> Any:
    """The tests' tiny pipelines."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module("families")


def reward(seen: Seen) -> FunctionReward:
    """The mean of the red channel, which counts what it is shown."""

    def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.images += len(images)
        return images[:, 0].mean((1, 2))

    return FunctionReward(redness, differentiable=True, needs_prompt=False)


@contextmanager
def counting(pipe: Any, seen: Seen) -> Iterator[None]:
    """Rows through the denoiser, those with a gradient among them, and latents decoded."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer

    forward, decode = denoiser.forward, pipe.vae.decode

    @functools.wraps(forward)  # inside of what steer puts around it
    def asked(*args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        seen.rows += len(x)
        seen.recorded += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        return forward(*args, **kwargs)

    def counted(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.decodes += len(z)
        return decode(z, *args, **kwargs)

    object.__setattr__(pipe.vae, "decode", counted)
    denoiser.forward = asked
    try:
        yield
    finally:
        del denoiser.forward
        object.__delattr__(pipe.vae, "decode")


def run(family: str, name: str) -> Cell:
    """One cell of the table.

    Raises:
        SteerError, ValueError: A refusal whose reason `REASONS` does not know.
    """
    case, cell, seen = cases()[name], Cell(family, name), Seen()
    tiny = families()
    pipe = tiny.shared(family)
    given = tiny.arguments(family, num_inference_steps=STEPS)
    method = case.method(family)
    cell.method, cell.cost = repr(method), method.cost(STEPS)
    try:
        with counting(pipe, seen), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = steer.guided(pipe, reward(seen), method=method)(**given).report
    except (SteerError, ValueError) as error:
        cell.status, cell.error = "refused", str(error)
        reason(cell)
        return cell
    ledger = report.ledger
    for key in ("backward_rows", "decodes", "reward_calls", "cfg_rows"):
        setattr(cell, key, getattr(ledger, key))
    cell.rows, cell.seen = ledger.denoiser_rows, asdict(seen)
    rows, recorded = (cell.cfg_rows * count for count in (cell.rows, cell.backward_rows))
    checks = {each * ledger.checked_rows for each in (1, cell.cfg_rows)}  # of one call, or two
    cell.ledger = any(
        seen == Seen(rows + more, recorded, cell.decodes, cell.reward_calls) for more in checks
    )
    if case.plain is not None:
        cell.identity = same(family, case.plain)
    return cell


def same(family: str, method: Method) -> bool:
    """Whether a method is the plain call, bit for bit, and leaves the generator alike."""
    tiny, outputs, states = families(), [], []
    pipe = tiny.shared(family)
    for call in (pipe, steer.guided(pipe, reward(Seen()), method=method)):
        given = tiny.arguments(family, num_inference_steps=STEPS)
        outputs.append(call(**given)[0])
        states.append(given["generator"].get_state())
    return torch.equal(*outputs) and torch.equal(*states)


def _calibration(family: str) -> steer.rewards.Calibration:
    """For a gate: twelve plain samples, of which every other fits the threshold."""
    tiny = families()
    given = tiny.arguments(family, num_inference_steps=STEPS)
    del given["prompt"], given["generator"]
    call = steer.guided(tiny.shared(family), reward(Seen()))
    return steer.calibrate_gate(
        call, ["a red circle"] * 12, quantile=0.5, at=(0.5,), alpha=0.5, batch=4, **given
    )


def reason(cell: Cell) -> str:
    """Why a cell was refused, in few words."""
    for said, words in REASONS.items():
        if said in cell.error:
            return words
    raise SteerError(f"{cell.case} on {cell.family}: {cell.error}")


def table(cells: Sequence[Cell]) -> str:
    """The cells as Markdown: a row per case, a column per family, the errors below."""
    names = list(dict.fromkeys(cell.case for cell in cells))
    found = {(cell.case, cell.family): cell for cell in cells}
    schedulers = [SCHEDULERS[families().USUAL[family]] for family in TITLES]
    errors = list(dict.fromkeys(_general(cell.error) for cell in cells if cell.error))
    lines = [
        "| | " + " | ".join(TITLES.values()) + " |",
        "|---|" + "---|" * len(TITLES),
        "| *scheduler* | " + " | ".join(f"*{name}*" for name in schedulers) + " |",
    ]
    for name in names:
        shown = [_shown(found[name, family], errors) for family in TITLES]
        note = cases()[name].note if name in cases() else ""
        label = f"`{name}`" + (f" ({note})" if note else "")
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    notes = [f"{number}. {error}" for number, error in enumerate(errors, 1)]
    return "\n".join([*lines, "", *notes])


def _shown(cell: Cell, errors: list[str]) -> str:
    if cell.status == "refused":
        return f"{reason(cell)} [{errors.index(_general(cell.error)) + 1}]"
    if cell.ledger is not True or cell.identity is False:
        return "**wrong**"
    backward = f"+{cell.backward_rows}b" if cell.backward_rows else ""
    return f"{cell.rows}{backward} / {cell.decodes}" + (" =" if cell.identity else "")


def _general(error: str) -> str:
    """An error without the names of the method and scheduler that the table shows anyway."""
    text = re.sub(r"^\w+ needs", "(method) needs", error)
    return re.sub(r"\b\w+Scheduler (on|remembers)", r"(scheduler) \1", text)


def load(path: Path = RAW) -> list[Cell]:
    """The raw cells of the last run."""
    return [Cell(**cell) for cell in json.loads(path.read_text())["cells"]]


_BLOCK = re.compile(r"(<!-- generated by [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str, cells: Sequence[Cell]) -> str:
    """The page with its generated part made anew.

    Raises:
        ValueError: The page has no such part.
    """
    text, found = _BLOCK.subn(lambda part: f"{part[1]}\n{table(cells)}\n\n{part[2]}", page)
    if not found:
        raise ValueError(f"{PAGE}: has no '<!-- generated by ... -->' and '<!-- end -->'")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=headline(__doc__))
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args(arguments)
    if not options.render:
        torch.set_num_threads(1)
        cells = []
        for name in cases():
            cells += [run(family, name) for family in TITLES]
            print(name, *(cell.status for cell in cells[-len(TITLES) :]), flush=True)
        raw = {**provenance(), "steps": STEPS, "cells": [asdict(cell) for cell in cells]}
        write_json(RAW, raw)
    PAGE.write_text(rendered(PAGE.read_text(), load()))


if __name__ == "__main__":
    main()
