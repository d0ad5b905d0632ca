"""Committed results as Markdown tables and plots.

    python benchmarks/show.py

Reads `benchmarks/results/*.json`, prints the tables that the README and the docs hold, and redraws
`docs/images/steering.png` and `docs/images/previews.png`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt


IMAGES = Path(__file__).parent.parent / "docs" / "images"
INK, ACCENT, SOFT = "#1f2430", "#d9480f", "#4c6ef5"


def load(study: str) -> dict[str, Any]:
    """The result of a study; the GPU's if there is one."""
    paths = sorted(common.RESULTS.glob(f"{study}_*.json"), key=lambda p: ("cpu" in p.name, p.name))
    if not paths:
        raise SystemExit(f"no result of {study!r} in {common.RESULTS}: run benchmarks/{study}.py")
    return json.loads(paths[0].read_text())


def steering_table(result: dict[str, Any]) -> str:
    """The arms as a Markdown table: reward, oracle with interval, gain over base, cost."""
    lines = [
        "| method | reward | all met (oracle) | gain over base, points | rows | decodes "
        "| reward calls | s/image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["table"]:
        met, gain = row["all_met"], row.get("all_met_gain")
        interval = f"{100 * met['mean']:.1f}% [{100 * met['low']:.1f}, {100 * met['high']:.1f}]"
        paired = "" if gain is None else _points(gain)
        lines.append(
            f"| {row['arm']} | {row['reward']['mean']:.3f} | {interval} | {paired} "
            f"| {row['denoiser_rows']:.0f} | {row['decodes']:.1f} | {row['reward_calls']:.1f} "
            f"| {row['seconds']:.2f} |"
        )
    return "\n".join(lines)


def _points(gain: dict[str, float]) -> str:
    return f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"


def plot_steering(result: dict[str, Any], path: Path) -> None:
    """Oracle rate against compute, one point per arm, with its interval."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), dpi=150)
    for row in result["table"]:
        x = row["denoiser_rows"] / result["table"][0]["denoiser_rows"]
        met = row["all_met"]
        color = ACCENT if row["arm"].startswith("Prune") else SOFT
        axis.errorbar(
            x,
            100 * met["mean"],
            [[100 * (met["mean"] - met["low"])], [100 * (met["high"] - met["mean"])]],
            fmt="o",
            color=color,
            capsize=3,
        )
        left = row["arm"] == "Prune 4x" or row["arm"] == "Gate"  # neighbours have the right side
        axis.annotate(
            row["arm"],
            (x, 100 * met["mean"]),
            (-7 if left else 7, 5),
            textcoords="offset points",
            ha="right" if left else "left",
        )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("compute, plain calls (denoiser rows)")
    axis.set_ylabel("all constraints met, % (oracle)")
    _finish(figure, axis, path)


def plot_previews(result: dict[str, Any], path: Path) -> None:
    """Spearman of preview with final reward, and where the final best stands, over the steps."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), dpi=150)
    x = [row["fraction"] for row in result["curve"]]
    rho = [row["spearman"] for row in result["curve"]]
    low, high = [r["low"] for r in rho], [r["high"] for r in rho]
    axis.fill_between(x, low, high, color=ACCENT, alpha=0.2, lw=0)
    axis.plot(x, [r["mean"] for r in rho], color=ACCENT, label="Spearman with final reward")
    half = [row["best_in_half"] for row in result["curve"]]
    axis.plot(x, half, color=SOFT, ls="--", label="final best is in the better half")
    axis.set_xlabel("fraction of the steps done")
    axis.set_ylim(-0.05, 1.05)
    axis.legend(frameon=False, loc="lower right")
    _finish(figure, axis, path)


def _finish(figure: Any, axis: Any, path: Path) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.tick_params(colors=INK)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    steering, previews = load("steering"), load("pilots")
    plot_steering(steering, IMAGES / "steering.png")
    plot_previews(previews, IMAGES / "previews.png")
    print(steering_table(steering))
    for name, difference in steering.items():
        if " minus " in name:
            print(name, json.dumps(difference))


if __name__ == "__main__":
    main()
