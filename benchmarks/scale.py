"""A sweep of a million prompts: what a prompt costs here, and how shards of it go on many workers.

    python benchmarks/scale.py --threads 1

First the bundled world is drawn and scored by the commands' own code, and bytes and CPU seconds are
taken per prompt. Then a shard is simulated, event by event, with the rules of `Pool`
(`steer/jobs/spread/pool.py`): a worker takes the oldest unit that was lost, else the next one;
no unit begins more than `8 x workers` ahead of the oldest one that is not done; a lost worker loads
again before it goes on. Units differ in length, a few are stragglers, workers are lost at a
constant rate.

Time on a GPU is not measured but computed: FLOPs as docs/costs.md counts them, over a stated share
of a stated peak.
"""

from __future__ import annotations

import argparse
import heapq
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


PROMPTS, AHEAD, SEEDS, RECORDS = 1_000_000, 8, 20, 2_000
ROW, DECODE, SCORE = 6.76, 10.47, 0.34  # TFLOPs of SDXL at 1024 pixels, and of a ViT-H score
STEPS, COMPUTE = 50, 4
PEAK, SHARE = 989.0, 0.4  # dense bfloat16 TFLOP/s of an H100's data sheet; the share is assumed


@dataclass(frozen=True)
class Setup:
    """One simulated shard.

    Attributes:
        units: Prompts of the shard.
        workers: GPUs that draw it.
        seconds: Of a unit, on average.
        load: Seconds until a new worker is ready.
        hours_per_loss: Mean hours until a worker is lost.
        spread: Standard deviation of a unit's log seconds.
        slow: Share of units that take `times` as long.
        times: How much longer a straggler takes.
    """

    units: int
    workers: int
    seconds: float
    load: float
    hours_per_loss: float
    spread: float = 0.05
    slow: float = 0.01
    times: float = 3.0


def simulate(setup: Setup, seed: int) -> dict[str, float]:
    """One shard from its first load to its last result."""
    rng = np.random.default_rng(seed)
    lengths = setup.seconds * rng.lognormal(-(setup.spread**2) / 2, setup.spread, setup.units)
    lengths[rng.random(setup.units) < setup.slow] *= setup.times
    rate = 1 / (3600 * setup.hours_per_loss)
    events: list[tuple[float, int, int | None]] = []  # when, which worker, which unit (None: load)
    dies = rng.exponential(1 / rate, setup.workers)
    for worker in range(setup.workers):
        heapq.heappush(events, (setup.load, worker, None))
    again: list[int] = []
    attempts: dict[int, int] = {}
    done, idle = np.zeros(setup.units, dtype=bool), set[int]()
    following = due = losses = worst = 0
    wasted = now = 0.0
    while due < setup.units:
        now, worker, unit = heapq.heappop(events)
        if dies[worker] <= now:  # lost on the way here
            losses += 1
            if unit is not None:
                wasted += dies[worker] - (now - lengths[unit])
                attempts[unit] = attempts.get(unit, 0) + 1
                worst = max(worst, attempts[unit])
                heapq.heappush(again, unit)
            ready = dies[worker] + setup.load
            dies[worker] = dies[worker] + rng.exponential(1 / rate)
            heapq.heappush(events, (max(ready, now), worker, None))
            continue
        if unit is not None:
            done[unit] = True
            while due < setup.units and done[due]:
                due += 1
        idle.add(worker)
        while idle:
            if again:
                chosen = heapq.heappop(again)
            elif following < min(setup.units, due + AHEAD * setup.workers):
                chosen, following = following, following + 1
            else:
                break
            worker = idle.pop()
            dies[worker] = max(dies[worker], now)
            heapq.heappush(events, (now + lengths[chosen], worker, chosen))
    busy = float(lengths.sum())
    return {
        "hours": now / 3600,
        "losses": losses,
        "wasted_gpu_hours": wasted / 3600,
        "most_losses_of_a_unit": worst,
        "efficiency": busy / (now * setup.workers),
    }


def mean_of(setup: Setup) -> dict[str, Any]:
    """The means over `SEEDS` simulations."""
    runs = [simulate(setup, seed) for seed in range(SEEDS)]
    means = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
    means["most_losses_of_a_unit"] = max(run["most_losses_of_a_unit"] for run in runs)
    return {**asdict(setup), **{key: round(value, 4) for key, value in means.items()}}


def measure(count: int) -> dict[str, float]:
    """Bytes and CPU seconds of the commands' own work on the bundled world, per prompt."""
    from steer.core.files.run_folder import RUN_FILE, RunFolder
    from steer.core.files.score_log import ScoreLog
    from steer.jobs.sample_job import SampleJob
    from steer.jobs.sampling import Sampler, draw_missing
    from steer.jobs.score_job import make_score_job
    from steer.jobs.scoring import Scorer, ScoreSettings, score_missing
    from steer.pipeline.report.page import write_report
    from steer.shapes import prompts

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        job = SampleJob(tuple(prompts("held_out", count, 0)), compute=COMPUTE, device="cpu")
        start = time.process_time()
        sampler = Sampler(job)
        found["load_seconds"] = time.process_time() - start
        run = RunFolder.create(folder, job.to_dict(), kind="sample", command="")
        start = time.process_time()
        for _ in draw_missing(run, sampler):
            pass
        found["sample_seconds"] = (time.process_time() - start) / count
        run.close("finished")
        images = list((folder / "images").iterdir())
        found["sample_image_bytes"] = sum(path.stat().st_size for path in images) / count
        found["files_per_prompt"] = len(images) / count
        found["entry_bytes"] = (folder / RUN_FILE).stat().st_size / count
        log = Path(place) / "log.jsonl"
        scoring = make_score_job([folder / "images"], ["shapes-clip"], log=log, device="cpu")
        scorer = Scorer(ScoreSettings.of(scoring))
        start = time.process_time()
        scored = sum(score_missing(scoring, scorer))
        found["score_seconds"] = (time.process_time() - start) / scored
        found["score_bytes"] = log.stat().st_size / len(ScoreLog(log))
        start = time.process_time()
        page = write_report(run)
        found["page_seconds"] = (time.process_time() - start) / count
        found["page_bytes"] = page.stat().st_size / count
        found |= record(run, RECORDS)
    return {key: round(value, 4) for key, value in found.items()}


def record(run: Any, count: int) -> dict[str, float]:
    """Seconds to record `count` prompts that are drawn already: copies of a run's own."""
    entries, arguments = run.entries, {**run.data["arguments"], "prompts": [""] * count}
    copy = type(run).create(run.folder.with_name("copy"), arguments, kind="sample", command="")
    shutil.copytree(run.folder / "images", copy.folder / "images")
    start, busy = time.perf_counter(), time.process_time()
    copy.close("running")
    for k in range(count):
        copy.add({**entries[k % len(entries)], "index": k})
    copy.close("finished")
    return {
        "records": count,
        "record_seconds": time.perf_counter() - start,
        "record_cpu_seconds": time.process_time() - busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    call = STEPS * 2 * ROW + DECODE
    work = COMPUTE * call
    seconds = work / (PEAK * SHARE)
    sizes = ((500, 8), (1_000, 8), (2_000, 8), (10_000, 8), (2_000, 64), (10_000, 64))
    found: dict[str, Any] = {
        "sdxl": {
            "tflop_per_call": call,
            "tflop_per_prompt": work,
            "seconds_per_prompt": seconds,
            "gpu_hours": PROMPTS * seconds / 3600,
            "peak_tflops": PEAK,
            "share_of_peak": SHARE,
            "compute": COMPUTE,
            "steps": STEPS,
        },
        "shards": [
            mean_of(Setup(units, workers, seconds, load=90.0, hours_per_loss=hours))
            for units, workers in sizes
            for hours in (1000.0, 24.0)
        ],
        "measured": measure(options.captions),
        "seeds": SEEDS,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
