"""The recorded pool of particles that `gate.py` replays its policies from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import steer
from steer.pipeline.previews import Previews
from steer.rewards import Pilots


STEPS, GUIDANCE = 20, 3.5
POOL = 16
AT = (0.35, 0.5, 0.65, 0.8)
CALL: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}


@dataclass(frozen=True)
class Pool:
    """What `POOL` particles of every caption came to.

    Attributes:
        prompts: The captions.
        steps, noise: Where previews were scored.
        previews: `(captions, POOL, steps)`.
        finals, all_met, fraction: Reward and the oracle's verdict, `(captions, POOL)`.
    """

    prompts: list[str]
    steps: tuple[int, ...]
    noise: tuple[float, ...]
    previews: np.ndarray
    finals: np.ndarray
    all_met: np.ndarray
    fraction: np.ndarray

    def pilots(self, captions: np.ndarray, particles: np.ndarray, columns: list[int]) -> Pilots:
        """One particle of each of some captions, as pilots watched at some of the steps."""
        return Pilots(
            tuple(self.prompts[c] for c in captions),
            tuple(self.steps[k] for k in columns),
            STEPS,
            tuple(self.noise[k] for k in columns),
            self.previews[captions, particles][:, columns],
            self.finals[captions, particles],
            "shapes",
        )

    def raw(self) -> dict[str, Any]:
        """JSON-ready, without the captions."""
        return {
            "steps": self.steps,
            "noise": self.noise,
            "previews": np.round(self.previews, 8).tolist(),
            "finals": np.round(self.finals, 8).tolist(),
            "all_met": self.all_met.astype(int).tolist(),
            "fraction": np.round(self.fraction, 4).tolist(),
        }

    @classmethod
    def of(cls, prompts: list[str], raw: dict[str, Any]) -> Pool:
        """What `raw` gave."""
        names = ("previews", "finals", "all_met", "fraction")
        arrays = (np.array(raw[name], dtype=float) for name in names)
        return cls(prompts, tuple(raw["steps"]), tuple(raw["noise"]), *arrays)


def generator(seed: int, caption: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 100_003 + caption)


def record(guided: steer.Guided, prompts: list[str], seed: int) -> Pool:
    """Run the pool of every caption."""
    previews, finals, verdicts, grid = [], [], [], {}
    for i, prompt in enumerate(tqdm(prompts, desc=f"pool, seed {seed}")):
        method = Previews(AT, POOL)
        out = guided(
            prompt, method=method, generator=generator(seed, i), output_type="latent", **CALL
        )
        trace = out.report.trace
        (grid,) = trace.of("grid")
        scores: dict[int | None, dict[int, float]] = {}
        for row in trace.of("score"):
            at = scores.setdefault(row["step"], {})
            at.update(zip(row["particle"], row["reward"], strict=True))
        previews.append([[scores[k][n] for k in grid["steps"]] for n in range(POOL)])
        finals.append([scores[None][n] for n in range(POOL)])
        images = np.stack([trace.images[0, n, -1] for n in range(POOL)])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        found = steer.shapes.oracle(pixels, [prompt] * POOL)
        verdicts.append([(v.all_met, v.fraction) for v in found])
    met, fraction = np.moveaxis(np.array(verdicts, dtype=float), 2, 0)
    steps, noise = tuple(grid["steps"]), tuple(grid["noise"])
    return Pool(prompts, steps, noise, np.array(previews), np.array(finals), met, fraction)
