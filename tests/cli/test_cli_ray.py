"""Commands on a local Ray cluster: the same bytes as one process, whatever becomes of workers.

One command is run on a real cluster; the others on one within this process, and on a real one too
by `make test-exhaustive`: each of its workers is a new process that imports everything.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray_here import RayHere
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.core.errors import WorkersError
from steer.jobs.compare.config import from_dict
from steer.jobs.compare.job import CompareJob
from steer.jobs.spread import pool as pools
from steer.jobs.spread.cluster import Cluster, connected
from steer.jobs.spread.crew import crew
from steer.jobs.spread.worker import Worker


pytestmark = pytest.mark.slow
PROMPTS = [
    "a red circle",
    "two blue squares",
    "a green triangle",
    "a yellow circle",
    "a blue triangle",
]
TIMED = ("seconds", "peak_bytes", "updated", "started", "command", "when", "created", "last_run")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    for left in (2, 1, 0):  # a cluster has thirty seconds to start, too few on a busy machine
        try:
            ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    yield Cluster("auto", 3)
    ray.shutdown()


@pytest.fixture(params=["here", pytest.param("cluster", marks=pytest.mark.exhaustive)])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places of work for `--ray auto`."""
    if request.param == "cluster":
        request.getfixturevalue("cluster")
        return
    monkeypatch.setattr(pools, "ray", RayHere())
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})


def run(*words: Any) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def untimed(value: Any) -> Any:
    """JSON without what a clock or the memory measures."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMED}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def files(folder: Path, *left_out: str) -> dict[str, Any]:
    """All files by name: JSON without times and digests of itself, else bytes."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix in (".html", ".lock") or name in left_out:
            continue
        found[name] = path.read_bytes()
        if path.suffix == ".json":
            found[name] = untimed(json.loads(found[name]))
            if name.startswith("records"):
                del found[name]["sha256"]
    return found


def hands() -> list[int]:
    """Processes of this cluster's workers that are at work."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::Hand.work"):
                raylet = _parent(entry)
                if int(_parent(Path("/proc") / raylet)) == os.getpid():
                    found.append(int(entry.name))
    return found


def _parent(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[1]


@pytest.mark.usefixtures("cluster")
def test_sample_with_a_worker_killed(tmp_path: Path) -> None:
    """Three workers; the first that is seen at work is killed."""
    words = ["sample", *PROMPTS, "--steps", 6, "--compute", 2, "--judge", "shapes-clip"]
    run(*words, "--out", tmp_path / "one")
    over, killed = threading.Event(), []

    def watch() -> None:
        while not killed and not over.wait(0.02):
            for process in hands()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(*words, "--out", tmp_path / "many", "--ray", "auto", "--workers", 3)
    finally:
        over.set()
        watcher.join()
    assert killed
    one, many = files(tmp_path / "one"), files(tmp_path / "many")
    assert many == one and len(one) >= 2 * len(PROMPTS)


@pytest.mark.usefixtures("workers")
def test_compare_with_two_workers(tmp_path: Path) -> None:
    arms = [{"name": "base"}, {"name": "best", "method": "BestOfN(2)"}]
    plan = {"arms": arms, "prompts": PROMPTS[:3], "seeds": 2, "steps": 4, "judges": ["oracle"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plan))
    run("compare", tmp_path / "c.yaml", "--out", tmp_path / "one")
    run("compare", tmp_path / "c.yaml", "--out", tmp_path / "two", "--ray", "auto", "--workers", 2)
    tables = ("scores.csv", "arms.csv")  # they have columns of seconds and of peak memory
    one, two = files(tmp_path / "one", *tables), files(tmp_path / "two", *tables)
    assert two == one and sum(name.endswith(".png") for name in one) == 12
    for name in tables:
        rows = [list(csv.DictReader((tmp_path / k / name).open())) for k in ("one", "two")]
        kept = [[{k: v for k, v in r.items() if k not in TIMED} for r in own] for own in rows]
        assert kept[0] == kept[1]


@pytest.mark.usefixtures("workers")
def test_score_with_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("sample", *PROMPTS, "--steps", 2, "--compute", 1, "--out", tmp_path / "run")
    (tmp_path / "run" / "images" / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)  # paths are relative: workers enter the same folder
    found = []
    for name, more in (("one", ()), ("two", ("--ray", "auto", "--workers", "2"))):
        words = ["score", "run/images", "-p", "a circle", "-r", "shapes", "-r", "shapes-clip"]
        words += ["--csv", f"{name}.csv", "--images-per-batch", "2", *more]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 1 and "bad.png" in result.stderr  # the damaged one
        found.append([Path(f"{name}{end}").read_bytes() for end in (".csv", ".scores.jsonl")])
    assert found[0] == found[1]
    assert found[0][1].count(b"\n") == 1 + 2 * 2 * len(PROMPTS)  # two rewards, two images each


@pytest.mark.usefixtures("workers")
def test_tune_data_with_two_workers(tmp_path: Path) -> None:
    plan = {"prompts": PROMPTS, "rewards": ["shapes", "shapes-clip"], "seeds": 2, "steps": 3}
    plan |= {"batch": 2, "shard": 4, "pairs": {}, "test_share": 0.2}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(plan | {"out": "unused"}))
    run("tune", "data", tmp_path / "d.yaml", "--out", tmp_path / "one")
    more = ("--ray", "auto", "--workers", 2)
    run("tune", "data", tmp_path / "d.yaml", "--out", tmp_path / "two", *more)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert two == one and {"index.parquet", "pairs.parquet"} <= set(one)


def worker(work: Callable[[int], int]) -> Any:
    """What makes a worker of a function; a class of its own, which is sent by value."""

    def make() -> Any:
        class Local(Worker[int, int]):
            about = "here"

            def work(self, unit: int) -> int:
                return work(unit)

        return Local()

    return make


def _deadly(unit: int) -> int:
    time.sleep(unit == 1)  # it is still at work when the next one fails
    if unit == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return unit * unit


def _wrong(unit: int) -> int:
    time.sleep(unit == 1)
    if unit == 2:
        raise KeyError("two")
    return unit * unit


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [(_deadly, WorkersError, "^2: cost 3 workers"), (_wrong, KeyError, "two")],
)
def test_units_that_fail_are_named_and_the_rest_is_kept(
    cluster: Cluster, work: Callable[[int], int], error: type[Exception], said: str
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    found = []
    with crew(worker(work), cluster, units=2) as workers:
        assert workers.about == "here"
        with pytest.raises(error, match=said):
            found.extend(workers.work_all([0, 1, 2]))
    assert found == [(0, 0), (1, 1)]


def test_an_interrupt_keeps_what_is_finished(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    with crew(worker(lambda unit: -unit), cluster, units=1) as workers:
        real, calls = ray.wait, iter(range(100))

        def wait(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(pools.ray, "wait", wait)
        found = []
        with pytest.raises(KeyboardInterrupt):
            found.extend(workers.work_all(range(50)))
    assert found == [(0, 0), (1, -1), (2, -2)]


def test_live_objects_and_numbered_devices_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    plan = {"arms": ["a", {"name": "b", "compute": 2}], "prompts": PROMPTS}
    with pytest.raises(ValueError, match=r"pipe=object: workers of a cluster load their own"):
        CompareJob(from_dict(plan), tmp_path / "out", pipe=object(), cluster=cluster)
    numbered = from_dict({**plan, "device": "cuda:1"})
    with pytest.raises(ValueError, match=r"device='cuda:1': every worker has one device"):
        CompareJob(numbered, tmp_path / "out", cluster=cluster)
    assert not (tmp_path / "out").exists()
    live, said = (tmp_path / "file").open("w"), "cannot be sent to workers"
    with live, pytest.raises(ValueError, match=said), crew(partial(print, live), cluster):
        pass


@pytest.mark.parametrize(
    ("address", "workers", "said"),
    [
        ("127.0.0.1:1", None, "'127.0.0.1:1': nobody answers there"),
        ("somewhere", None, "'somewhere': not an address"),
        ("ray://head:10001", None, "ray job submit"),
        ("auto", 0, "--workers 0: must be at least 1"),
        (None, 2, "--workers 2: needs --ray"),
    ],
)
def test_addresses_that_lead_nowhere(
    address: str | None, workers: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=said), connected(address, workers):
        pass


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer.core.checks.importlib.util.find_spec", lambda name: None)
    words = ["sample", "a red circle", "--out", str(tmp_path / "out"), "--ray", "auto"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 2
    assert "ray not installed: run pip install 'steer-diffusion[ray]'" in result.stderr
    assert not (tmp_path / "out").exists()
