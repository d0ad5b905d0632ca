"""Does a ridge head on a reward's own previews rank particles better than the last preview does?

    python benchmarks/preview_heads.py

Replays the recorded pilots of `benchmarks/previews.py` (no sampling): after every step between 25
and 50% of the run, a ridge regression on the rewards of all previews so far predicts the final
reward, everything centred within its caption, fitted on seven eighths of the captions and asked
about the rest. An affine head on the last preview alone ranks as that preview does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import numpy as np
from scipy import stats


PILOTS, FOLDS, RIDGE = common.RESULTS / "pilots_cpu2.json", 8, 0.1


def centre(values: np.ndarray, standardise: bool) -> np.ndarray:
    """Within captions, the last axis; in units of the caption's own deviation if so asked."""
    found = values - values.mean(-1, keepdims=True)
    return found / (values.std(-1, keepdims=True) + 1e-9) if standardise else found


def predict(previews: np.ndarray, finals: np.ndarray) -> np.ndarray:
    """Final rewards `(captions, particles)` of held-out folds, from `(captions, steps, ...)`."""
    found = np.zeros_like(finals)
    order = np.random.default_rng(0).permutation(len(finals))
    for test in np.array_split(order, FOLDS):
        train = np.setdiff1d(order, test)
        x = previews[train].transpose(0, 2, 1).reshape(-1, previews.shape[1])
        size = x.std(0) + 1e-9
        x = x / size
        gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ finals[train].ravel()) / size
        found[test] = np.einsum("cks,k->cs", previews[test], weights)
    return found


def agreement(scores: np.ndarray, finals: np.ndarray) -> np.ndarray:
    """Spearman with the final rewards, per caption."""
    pairs = zip(scores, finals, strict=True)
    return np.nan_to_num([stats.spearmanr(own, last)[0] for own, last in pairs])


def row(previews: np.ndarray, finals: np.ndarray, calls: int) -> dict[str, Any]:
    """The last preview and the heads after so many denoiser calls."""
    own = agreement(previews[:, calls - 1], finals)
    found: dict[str, Any] = {"after": calls, "preview": common.interval(own)}
    for name, standardise in (("head", False), ("head_z", True)):
        seen = centre(previews[:, :calls], standardise)
        rho = agreement(predict(seen, centre(finals, standardise)), finals)
        found[name] = common.interval(rho)
        found[f"{name}_minus_preview"] = common.interval(rho - own)
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pilots", type=Path, default=PILOTS)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pilots = json.loads(args.pilots.read_text())
    previews, finals = np.array(pilots["previews"]), np.array(pilots["finals"])
    steps = previews.shape[1]
    result = {
        "study": "preview_heads",
        **common.provenance(),
        "pilots": args.pilots.name,
        "captions": len(finals),
        "particles": finals.shape[1],
        "steps": steps,
        "table": [row(previews, finals, k) for k in range(steps // 4, steps // 2 + 1)],
    }
    common.write_json(
        args.out or common.RESULTS / f"preview_heads_{common.hardware()}.json", result
    )


if __name__ == "__main__":
    main()
