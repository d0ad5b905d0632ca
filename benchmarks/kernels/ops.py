"""Every op of `steer_kernels` alone, against what it replaces, at the model's own sizes.

On a GPU ten runs are recorded as one CUDA graph, for every way alike, so that what is timed is the
work and not its launches; they read different copies of their inputs where those would otherwise
stay in the L2 cache. Compiled ways are `max-autotune-no-cudagraphs` for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.arms import compiled
from benchmarks.kernels.check import same
from benchmarks.kernels.clock import QUANTILES, Call, Clock, reason
from benchmarks.kernels.op_cases import Case, Inputs, Sizes, Way, cases
from benchmarks.kernels.throughput import MODES, Row, with_speedup
from steer.rewards.clip.graphs import cuda_graph


REPEATS = 10
CACHE = 2**28
"""Bytes that the copies of an op's inputs fill: several times any L2 cache."""
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest relative error of a way, by the type of its inputs."""


def measure(
    sizes: Sizes, clock: Clock, with_compiled: bool, save: Callable[[list[Row]], None]
) -> None:
    """All ops at one batch; `save` gets the rows of each.

    Raises:
        Off: A way is wrong: nothing of this op is printed.
    """
    for case in cases(sizes):
        ways = dict(case.ways)
        if with_compiled:
            ours = ways.pop("ours")
            fast = compiled(ways["eager"], "max-autotune-no-cudagraphs")
            ways |= {"compiled": fast, "ours": ours}
        errors, failed = _checked(case, ways, sizes.dtype)
        ways = {name: way for name, way in ways.items() if name in errors}
        where = {"section": "op", "op": case.name, "batch": sizes.batch, "side": case.side}
        where |= {"dtype": str(sizes.dtype).removeprefix("torch.")}
        for mode in MODES if case.backward else MODES[:1]:
            rows = _timed(case, ways, mode, clock, failed)
            for row in rows:
                row |= where
                if row["arm"] in errors:
                    row["error"] = errors[row["arm"]]
                if "p50" in row:
                    row["images_per_s"] = 1e3 * sizes.batch / row["p50"]
            save(with_speedup(rows, "eager"))


def _checked(
    case: Case, ways: Mapping[str, Way], dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, str]]:
    """Every way's relative error against eager PyTorch on float32 inputs; and which do not run."""
    inputs = case.make()
    found, failed = {}, {}
    with torch.no_grad():
        exact = case.read(ways["eager"](*map(_widened, inputs)))
        for name, way in ways.items():
            try:
                got = case.read(way(*inputs))
            except Exception as error:  # one op that does not run leaves the others
                failed[name] = reason(error)
                continue
            limit = case.limit or LIMITS[dtype]
            found[name] = same(f"{case.name} by {name}", got, exact, limit)
    return found, failed


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _timed(
    case: Case, ways: Mapping[str, Way], mode: str, clock: Clock, failed: Mapping[str, str]
) -> list[Row]:
    """Rows of one op in one mode, without the columns that all of them share."""
    inputs = [case.make()]
    size = sum(x.numel() * x.element_size() for x in inputs[0])
    copies = max(1, min(REPEATS, -(-CACHE // max(size, 1)))) if clock.cuda else 1
    inputs += [case.make() for _ in range(copies - 1)]
    calls: dict[str, tuple[Call, int]] = {}
    peaks: dict[str, float | None] = {}
    notes = dict(failed)
    for name, way in ways.items():
        try:
            run = _forward(way) if mode == MODES[0] else _backward(way, case, inputs[0])
            run(inputs[0])  # compiled before its memory is looked at
            peaks[name] = clock.peak(lambda run=run: run(inputs[0]))
            calls[name] = _call(run, inputs, clock.cuda)
        except Exception as error:  # as above
            notes[name] = reason(error)
    found, more = clock.compare({name: call for name, (call, _) in calls.items()})
    work = 2 if mode != MODES[0] else 1
    rows: list[Row] = []
    for name, time_ in found.items():
        per_run: Row = {key: time_[key] / calls[name][1] for key, _ in QUANTILES}
        per_run["peak_gib"] = peaks[name]
        if case.flop:
            per_run["tflops"] = work * case.flop / per_run["p50"] / 1e9
        else:
            per_run["gb_per_s"] = work * case.moved / per_run["p50"] / 1e6
        rows.append({"arm": name, "mode": mode, **per_run})
    return rows + [{"arm": k, "mode": mode, "note": v} for k, v in (notes | more).items()]


def _call(run: Callable[[Inputs], Any], inputs: list[Inputs], cuda: bool) -> tuple[Call, int]:
    """A call, and how many runs it is: a graph of `REPEATS` on a GPU."""
    if not cuda:
        return (lambda: run(inputs[0])), 1

    def many(*_: Tensor) -> tuple[Tensor, ...]:
        for index in range(REPEATS):
            run(inputs[index % len(inputs)])
        return ()

    try:
        return cuda_graph(many, inputs[0][:1], None)[1], REPEATS
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # not recordable: timed with its launches
        torch.cuda.synchronize()
        run(inputs[0])
        return (lambda: run(inputs[0])), 1


def _forward(way: Way) -> Callable[[Inputs], Any]:
    def run(some: Inputs) -> Any:
        with torch.no_grad():
            return way(*some)

    return run


def _backward(way: Way, case: Case, like: Inputs) -> Callable[[Inputs], Any]:
    with torch.no_grad():
        upstream = torch.randn_like(case.read(way(*like)))

    def run(some: Inputs) -> Any:
        with torch.enable_grad():
            leaf = some[0].detach().requires_grad_()
            return torch.autograd.grad(case.read(way(leaf, *some[1:])), leaf, upstream)

    return run
