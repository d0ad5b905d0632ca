"""Does steer hold on the pipelines of diffusers' own tests? Every pipeline class, every method.

    python -m benchmarks.conformance --tests DIR                     # all that is not done yet
    python -m benchmarks.conformance --tests DIR --only flux latte   # cases with one of these words
    python -m benchmarks.conformance --tests DIR --shard 1/2         # every second one
    python -m benchmarks.conformance --tests DIR --add               # what a case lacks
    python -m benchmarks.conformance --tests DIR --add PCNL RBF      # these checks alone
    python -m benchmarks.conformance --tests DIR --list
    python -m benchmarks.conformance --render                      # the tables in docs/families.md

DIR is a checkout of diffusers, or any folder that holds its `tests/`, at about the installed
version; nothing of it is part of this repository. Those tests need parameterized, requests_mock,
sentencepiece, protobuf and beautifulsoup4, which may lie anywhere on PYTHONPATH. Nothing is
downloaded: random stand-ins (`stubs.py`) take the place of tokenizers and encoders.

Every test class gives a pipeline of random weights and the arguments of a short call
(`cases.py`). The checks (`checks.py`) run one after the other, in a process per class
(`worker.py`): best of one is the plain call bit for bit, latents are decoded as the pipeline does,
two prompts in one call, and every method at tiny settings: the returned image was scored, its
reward is its own, and it is no worse than the plain call's where that was scored. A check is
`right`, `refused` (steer says why), a `crash`, `wrong`, or a `test limit`, which says nothing of
steer: plain calls that do not run offline, that return NaN or a constant image.

Results are lines of a file. Cases that are in it with every check and today's versions are left out
unless `--again`: a run can be interrupted, shards may share the file, and a new method or a new
version of diffusers makes all cases due again. With `--add` a case that has results of the same
versions of everything else keeps what was right of them, and is asked for the rest alone: checks
that are new, and those that an earlier steer refused, got wrong or crashed in; or for those that
are named, and all others stand.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, headline, provenance
from benchmarks.conformance import page
from benchmarks.conformance.cases import Case, discover
from benchmarks.conformance.checks import CHECKS, examine
from benchmarks.conformance.results import OUTCOMES, Record, Result, append, load
from benchmarks.conformance.worker import results


OUT = RESULTS / "conformance.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.render:
        page.write(load(options.out))
        return
    if options.tests is None:
        raise SystemExit("--tests DIR: a folder with diffusers' tests/ in it")
    torch.set_num_threads(1)
    cases, broken = discover(options.tests)
    if not cases and not broken:
        raise SystemExit(f"--tests {options.tests}: no tests below tests/pipelines there")
    chosen = _chosen(cases, options)
    if options.list:
        print("\n".join([*(case.key for case in chosen), *map("{}: not imported".format, broken)]))
        return
    found = {} if options.again else load(options.out)
    wanted = options.add or CHECKS
    done = {case for case, record in found.items() if _is_current(record, wanted)}
    if options.only is None and options.shard[0] == 1:
        _keep_broken(broken, done, options.out)
    for case in chosen:
        if case.key not in done:
            _run(case, options, load(options.out).get(case.key))


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=headline(__doc__))
    found.add_argument("--tests", type=Path, metavar="DIR", help="what holds diffusers' tests/")
    found.add_argument("--only", nargs="+", metavar="WORD", help="cases with one of these")
    found.add_argument("--shard", type=_shard, default=(1, 1), metavar="K/N", help="the k-th of n")
    found.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    found.add_argument("--again", action="store_true", help="also cases that are in the file")
    found.add_argument(
        "--add", nargs="*", choices=tuple(CHECKS), metavar="CHECK", help="keep what is known"
    )
    found.add_argument("--limit", type=float, default=300, help="seconds for a case")
    found.add_argument("--list", action="store_true", help="only name the cases")
    found.add_argument("--render", action="store_true", help="only write the tables")
    return found


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N")
    return int(number), int(of)


def _chosen(cases: list[Case], options: argparse.Namespace) -> list[Case]:
    words, (number, of) = options.only or [""], options.shard
    found = [case for case in cases if any(word in case.key for word in words)]
    return found[number - 1 :: of]


def _is_current(record: Record, wanted: Collection[str]) -> bool:
    """Whether a record has every check that is wanted, of the versions that are installed."""
    whole = not record.pipeline or set(wanted) <= set(record.checks)
    return whole and record.versions == provenance()["versions"]


def _keep_broken(broken: dict[str, str], done: Container[str], out: Path) -> None:
    for module, why in broken.items():
        print(f"{module}: not imported, {why}", flush=True)
        if module not in done:
            append(out, _record(module, "", {}, why=why))


def _run(case: Case, options: argparse.Namespace, before: Record | None) -> None:
    began = time.monotonic()
    kept = {} if before is None or options.add is None else _kept(before, options.add)
    due = (kept and options.add) or [name for name in CHECKS if name not in kept]
    found = kept | results(case, partial(examine, names=due), due, options.limit)
    checks = {name: found[name] for name in CHECKS if name in found}
    seconds = round(time.monotonic() - began, 1)
    record = _record(case.key, case.pipeline.__name__, checks, seconds=seconds)
    if before is not None and kept:
        record = replace(record, kept=len(kept), since=before.since or before.date)
    append(options.out, record)
    counts = Counter(result.outcome for result in found.values())
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{record.seconds:6.1f} s  {case.key}: {told}", flush=True)


def _kept(record: Record, anew: Collection[str]) -> dict[str, Result]:
    """What was right, or says nothing of steer, where nothing but steer has changed.

    Where checks are named that are to be made anew, all others.
    """
    then, now = record.versions, provenance()["versions"]
    if {**then, "steer-diffusion": now["steer-diffusion"]} != now:
        return {}
    stands = OUTCOMES if anew else ("right", "test limit")
    known = {name: found for name, found in record.checks.items() if name not in anew}
    return {name: found for name, found in known.items() if found.outcome in stands}


def _record(case: str, pipeline: str, checks: dict[str, Result], **more: Any) -> Record:
    today, versions = date.today().isoformat(), provenance()["versions"]
    return Record(case, pipeline, checks, date=today, versions=versions, **more)


if __name__ == "__main__":
    main()
