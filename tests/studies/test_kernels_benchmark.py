"""`python -m benchmarks.kernels` end to end on a CPU, its gate, its arithmetic and its tables."""

from __future__ import annotations

import importlib
import json
import math
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from steer.rewards.clip.tower_weights import vit_weights


ROOT = Path(__file__).parents[2]
NAMES = ("arms", "check", "clock", "models", "op_cases", "ops", "published", "quality", "report",
         "table", "targets", "throughput")  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark's modules; its command is `run`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        loaded = {name: importlib.import_module(f"benchmarks.kernels.{name}") for name in NAMES}
        run = importlib.import_module("benchmarks.kernels.__main__")
        return SimpleNamespace(run=run, **loaded)


def quick(out: Path, *parts: str) -> list[str]:
    options = ["--rounds", "1", "--batches", "2", "--sides", "64", "--steps", "2", "--prompts", "2"]
    return [*options, "--out", str(out), "--parts", *parts]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure this GPU")
@pytest.mark.slow
def test_the_command_runs_on_a_cpu(bench: Any, tmp_path: Path) -> None:
    bench.run.main(quick(tmp_path, "scorers", "ops", "published", "noise", "quality"))
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["device"] == "none (CPU)" and "no claim about GPUs" in result["note"]
    ours = {"eager", "transformers", "fused", "fused-no-graphs", "fp8"}
    assert set(result["gate"]) == ours
    assert result["absent"]["compiled"] == "needs a GPU"
    assert set(result["absent"]) | ours >= set(bench.arms.NAMES)
    assert "targets" not in result
    noise = result["noise_optimisation"]
    assert "stand-in" in noise["generator"]
    assert all(row["reward_after"] > row["reward_before"] for row in noise["rows"])
    trained = result["quality"]["bundled scorer, trained"]
    assert trained["float32 fused"]["top1"] == 1 and trained["bfloat16"]["spearman"] > 0.99

    rows = bench.table.read(path.with_suffix(".csv"))
    assert all(float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) for row in rows)
    assert {row["torch"] for row in rows} == {torch.__version__}
    seen = {(r["arm"], r["mode"]) for r in rows if r["section"] == "scorer"}
    backward = {(arm, "forward+backward") for arm in ours - {"fp8"}}
    assert seen == {(arm, "forward") for arm in ours} | backward
    found = {r["op"] for r in rows if r["section"] == "op"}
    assert found >= {
        "resize_patchify",
        "attention_cls",
        "norm",
        "linear_gelu",
        "norm_quant",
        "head",
    }
    assert {r["arm"] for r in rows if r["section"] == "published"} == {
        bench.published.REENACTED,
        bench.published.RELOADED,
    }
    plots = {p.stem.rpartition("_")[2] for p in tmp_path.glob("*.svg")}
    assert plots == {"throughput", "ops", "error"}


def test_a_red_gate_prints_no_number(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench.arms.make

    def broken(names: list[str], setting: Any) -> Any:
        made, absent = real(["eager", "fused"], setting)
        off = made[1].score
        bad = bench.arms.Arm("fused", lambda x, t: off(x, t) * 1.01, "float32")
        return [made[0], bad], absent

    monkeypatch.setattr(bench.arms, "make", broken)
    with pytest.raises(SystemExit, match=r"fused is off: .*no time is reported"):
        bench.run.main(quick(tmp_path, "scorers"))
    assert not list(tmp_path.iterdir())
    assert " ms" not in "".join(capsys.readouterr())


def test_the_gate_drops_a_baseline_and_refuses_ours(bench: Any) -> None:
    model = bench.models.build("tiny", CPU, torch.float64)
    exact = bench.arms.by_open_clip(model, torch.float64)
    images = bench.models.pictures(2, 64, CPU, torch.float64)

    def fails(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel\nmore")

    def arm(name: str, score: Any) -> Any:
        return bench.arms.Arm(name, score, "float32", differentiable=False)

    def off(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return exact(images, texts.double()) + 1e-3

    good = arm("eager", lambda x, t: exact(x, t.double()))
    others = [arm("transformers", off), arm("xformers", fails)]
    found, dropped = bench.check.gate([good, *others], exact, images, 24)
    assert set(found) == {"eager"} and found["eager"]["score_error"] < 1e-9
    assert dropped["transformers"].startswith("transformers is off")
    assert dropped["xformers"] == "RuntimeError: no such kernel"
    nan = arm("fp8", lambda x, t: x.sum((1, 2, 3)) * float("nan"))
    with pytest.raises(SystemExit, match="fp8 is off"):
        bench.check.gate([good, nan], exact, images, 24)
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench.check.gate([arm("fused", fails)], exact, images, 24)
    with pytest.raises(SystemExit, match=r"norm by ours is off by 0\.1"):
        bench.check.same("norm by ours", torch.full((4,), 1.1), torch.ones(4), 0.05)
    with pytest.raises(SystemExit, match="off by nan"):
        bench.check.same("norm by ours", torch.full((4,), math.nan), torch.ones(4), 0.05)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=40))
def test_percentiles_are_numpys(bench: Any, samples: list[float]) -> None:
    found = bench.clock.percentiles(samples)
    expected = np.quantile(samples, (0.2, 0.5, 0.8))
    assert list(found.values()) == pytest.approx(list(expected), rel=1e-4)
    assert set(bench.clock.percentiles([3.0]).values()) == {3.0}


def test_memory_is_that_of_the_call_that_is_named(bench: Any) -> None:
    class Counting(bench.clock.Clock):
        """Calls since the reset, in place of bytes."""

        def _reset(self) -> int:
            return len(calls)

        def _peak(self, held: int) -> float:
            return len(calls[held:])

    calls: list[int] = []
    names = {"first": 1.0, "second": 2.0, "later": 1.0}
    found, _ = Counting(CPU, 0.0, 2).compare(
        {name: (lambda: calls.append(1)) for name in names}, {name: name for name in names}
    )
    assert {name: row["peak_gib"] for name, row in found.items()} == names
    assert Counting(CPU, 0.0, 2).peak(lambda: calls.append(1)) == 1.0


def test_calls_are_interleaved_and_one_that_does_not_fit_is_noted(bench: Any) -> None:
    order: list[str] = []

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = {name: (lambda name=name: order.append(name)) for name in "ab"} | {"c": too_large}
    found, failed = bench.clock.Clock(CPU, 0.0, 3).compare(calls)
    assert failed == {"c": "out of memory"} and set(found) == {"a", "b"}
    assert "".join(order[-6:]) == "abbaab"  # rounds in rotated order
    assert found["a"]["peak_gib"] is None
    rows = [{"arm": "a", "p50": 6.0}, {"arm": "b", "p50": 2.0}, {"arm": "c"}]
    speedups = [row.get("speedup") for row in bench.throughput.with_speedup(rows, "a")]
    assert speedups == [1.0, 3.0, None]


def by_counting(fast: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Spearman's and Kendall's correlation of scores without ties, by their definitions."""
    n = len(fast)
    gap = fast.argsort().argsort() - exact.argsort().argsort()
    agreeing = [(fast[i] - fast[j]) * (exact[i] - exact[j]) > 0
                for i, j in combinations(range(n), 2)]  # fmt: skip
    return 1 - 6 * (gap**2).sum() / (n * (n**2 - 1)), 2 * float(np.mean(agreeing)) - 1


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 1000))
def test_decisions_against_their_definitions(
    bench: Any, candidates: int, prompts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    fast, exact = rng.normal(size=(2, prompts, candidates))
    found = bench.quality.decisions(fast, exact)
    pairs = [by_counting(a, b) for a, b in zip(fast, exact, strict=True)]
    assert found["spearman"] == pytest.approx(np.mean([p[0] for p in pairs]))
    assert found["kendall"] == pytest.approx(np.mean([p[1] for p in pairs]))
    lost = [(b.max() - b[a.argmax()]) / b.std() for a, b in zip(fast, exact, strict=True)]
    assert found["regret"] == pytest.approx(np.mean(lost)) and found["regret"] >= 0
    assert found["top1"] == np.mean([gap == 0 for gap in lost])
    same = bench.quality.decisions(np.exp(exact), exact)
    assert (same["spearman"], same["kendall"]) == pytest.approx((1, 1))
    assert (same["top1"], same["regret"]) == (1, 0)


def test_decisions_that_cannot_be_compared(bench: Any) -> None:
    one = np.zeros((2, 3))
    assert bench.quality.decisions(one, one)["spearman"] == 0  # constant: not defined
    for bad in (one[:1], one[:, :1], np.zeros(3)):
        with pytest.raises(ValueError, match=r"pass \(prompts, candidates\)"):
            bench.quality.decisions(bad, one if bad.ndim == 2 and len(bad) == 1 else bad)
    with pytest.raises(ValueError, match="not finite"):
        bench.quality.decisions(one * np.nan, one)


def test_scores_of_every_image_against_every_text(bench: Any) -> None:
    images, texts = torch.randn(3, 4), torch.randn(2, 4)
    found = bench.quality.table(lambda x, t: (x * t).sum(-1), images, texts)
    assert found == pytest.approx((texts @ images.T).double().numpy(), rel=1e-5)


def test_candidates_of_a_caption_are_right_and_wrong(bench: Any) -> None:
    import steer

    (text, images), *_ = bench.quality.candidates(1, 8)
    met = [verdict.all_met for verdict in steer.shapes.oracle(images, [text] * 8)]
    assert met == [i % 4 == 0 for i in range(8)]


@pytest.mark.parametrize(("name", "gflop"), [("ViT-H-14", 334.6), ("ViT-B-32", 8.8)])
def test_operations_of_the_published_towers(bench: Any, name: str, gflop: float) -> None:
    """Against the counts of pytorch-image-models (GMACs of its CLIP towers, twice)."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name) or {})
    assert bench.models.flops(vit_weights(model)) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_shares_are_of_the_measured_rates(bench: Any) -> None:
    def shares(**row: Any) -> Any:
        return bench.table.shares(row, 2e9, 4.0, 50.0)

    row = shares(section="scorer", mode="forward+backward", images_per_s=500.0)
    assert row["tflops"] == 2 and row["ceiling_share"] == 0.5
    assert shares(section="scorer", mode="forward", images_per_s=500.0)["ceiling_share"] == 0.25
    assert shares(section="op", mode="forward", gb_per_s=25.0)["copy_share"] == 0.5
    assert shares(section="scorer", mode="forward", note="out of memory").keys() == {
        "section", "mode", "note"
    }  # fmt: skip


def test_the_table_is_written_whole_and_remeasured_rows_are_replaced(
    bench: Any, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "table.csv"
    assert bench.table.read(path) == []
    row = {"section": "scorer", "arm": "fused", "batch": 64, "side": 512, "gpu": 'A "GPU", 80 GB'}
    bench.table.write(path, [row | {"p50": 1.23456789}, row | {"batch": 1, "p50": None}])
    old = bench.table.read(path)
    assert tuple(old[0]) == bench.table.COLUMNS and {"gpu", "driver", "torch", "triton"} <= set(
        old[0]
    )
    assert (old[0]["gpu"], old[0]["p50"], old[1]["p50"]) == (row["gpu"], "1.2346", "")
    merged = bench.table.merged(old, [row | {"p50": 2.0}, row | {"gpu": "B", "p50": 3.0}])
    assert [r["p50"] for r in merged] == ["", 2.0, 3.0]
    with pytest.raises(ValueError, match=r"columns \['speed'\]"):
        bench.table.write(path, [{"speed": 1}])
    assert bench.table.read(path) == old


def test_targets(bench: Any) -> None:
    base = {"section": "scorer", "mode": "forward", "batch": "64", "side": "512"}
    rows = [
        {**base, "arm": "eager", "p50": "130"},
        {**base, "arm": "fused", "p50": "100", "ceiling_share": "0.79"},
        {**base, "arm": "compiled", "note": "out of memory"},
    ]
    quality = {"eager": {"top1": 0.5}, "fp8": {"top1": 0.49}}
    noise = {"steps": 50, "rows": [{"arm": "fused", "seconds": 1.4}]}
    found = {t["target"]: t["met"] for t in bench.targets.targets(rows, quality, noise, 512)}
    assert found["batch 64, bfloat16 against open_clip eager"] is True
    assert found["batch 64, bfloat16 against compiled"] is None
    assert found["batch 64, share of the products' rate"] is False
    assert found["FP8's top-1 agreement over bfloat16's own"] is True
    assert found["seconds of a noise optimisation of 50 steps"] is True
    empty = bench.targets.targets([], {}, {}, 512)
    assert all(t["met"] is None and t["measured"] is None for t in empty)


def test_file_names_of_devices(bench: Any) -> None:
    gpu = torch.device("cuda")
    names = {"NVIDIA H100 80GB HBM3": "h100-80gb-hbm3", "NVIDIA H200": "h200"}
    assert {name: bench.report.short_name(name, gpu) for name in names} == names


@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_transformers_has_the_same_scores(
    bench: Any, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    used: list[tuple[int, ...]] = []

    def memory_efficient_attention(q: Any, k: Any, v: Any, scale: float) -> Any:
        used.append(tuple(q.shape))
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale)
        return out.transpose(1, 2)

    package, module = ModuleType("xformers"), ModuleType("xformers.ops")
    module.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    setting = bench.arms.Setting("tiny", CPU, torch.float64)
    model = setting.build()
    if attention == "xformers":
        arm = bench.arms._xformers(setting)
    else:
        arm = bench.arms._transformers(setting)
    images = bench.models.pictures(3, 70, CPU, torch.float64)
    texts = bench.models.texts_of(3, 24, CPU).double()
    expected = bench.arms.by_open_clip(model, torch.float64)(images, texts)
    assert (arm.score(images, texts) - expected).abs().max() < 1e-12
    assert used == ([(3, 17, 2, 64)] * 3 if attention == "xformers" else [])


def test_what_is_not_there_is_absent_with_the_reason(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = bench.arms.Setting("tiny", CPU, torch.float32)

    def fails(_: Any) -> Any:
        raise KeyError("another layout")

    monkeypatch.setitem(bench.arms._MAKERS, "transformers", fails)
    made, absent = bench.arms.make(["transformers", "compiled", "fused"], setting)
    assert [arm.name for arm in made] == ["fused"]
    assert absent == {"transformers": "KeyError: 'another layout'", "compiled": "needs a GPU"}
    with pytest.raises(SystemExit, match="--model none: 'tiny', or a name of open_clip"):
        bench.models.build("none", CPU, torch.float32)
    with pytest.raises(SystemExit, match="--model RN50: its image tower is a ModifiedResNet"):
        bench.models.build("RN50", torch.device("meta"), torch.float32)


def test_the_same_weights_in_every_build_and_from_a_file(bench: Any, tmp_path: Path) -> None:
    one = bench.models.build("tiny", CPU, torch.float32, text=True)
    other = bench.models.build("tiny", CPU, torch.float32)
    for a, b in zip(one.visual.parameters(), other.visual.parameters(), strict=True):
        assert torch.equal(a, b)
    state = {name: x + 0.1 for name, x in one.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    loaded = bench.models.build("tiny", CPU, torch.float32, tmp_path / "weights.pt")
    assert torch.equal(loaded.visual.proj, state["visual.proj"])
