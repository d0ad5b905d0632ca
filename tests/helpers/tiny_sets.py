"""Tiny datasets in the format of docs/tune.md, written without steer's own writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from families import seeded
from safetensors.torch import save_file
from torch import Tensor

from steer.tune import TuneConfig


LATENTS = {
    **dict.fromkeys(("sd", "sdxl", "sd3", "pixart", "sana"), (4, 8, 8)),
    "flux": (16, 16),
    "wan": (4, 3, 8, 8),
}
TEXT: dict[str, dict[str, tuple[int, ...]]] = {
    "sd": {"encoder_hidden_states": (16, 16)},
    "sdxl": {
        "encoder_hidden_states": (16, 32),
        "added_cond_kwargs.text_embeds": (16,),
        "added_cond_kwargs.time_ids": (6,),
    },
    "sd3": {"encoder_hidden_states": (24, 32), "pooled_projections": (32,)},
    "flux": {"encoder_hidden_states": (8, 16), "pooled_projections": (16,)},
    **{key: {"encoder_hidden_states": (8, 16)} for key in ("pixart", "sana", "wan")},
}
"""What the families' denoisers are given, in rows of these shapes."""


def write_set(
    folder: Path,
    family: str = "sd",
    prompts: int = 4,
    seeds: int = 4,
    scores: Sequence[float] | None = None,
    pairs: Sequence[tuple[str, str]] | str | None = "neighbours",
    columns: dict[str, Sequence[Any]] | None = None,
    test_prompts: int = 1,
    **manifest: Any,
) -> Path:
    """A dataset of random latents; scores rise with the seed, pairs are later beats earlier."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = seeded(0)
    count = prompts * seeds
    names = [f"p{p}-s{s}" for p in range(prompts) for s in range(seeds)]
    numbers = [p for p in range(prompts) for _ in range(seeds)]
    if scores is None:
        scores = [s + 0.01 * p for p in range(prompts) for s in range(seeds)]
    table: dict[str, Any] = {
        "id": names,
        "prompt": [f"prompt {p}" for p in numbers],
        "prompt_id": [10 + p for p in numbers],
        "seed": [s for _ in range(prompts) for s in range(seeds)],
        "shard": [f"latents-{i % 2:05d}.safetensors" for i in range(count)],
        "row": [i // 2 for i in range(count)],
        "score": [float(s) for s in scores],
        "score_other": [-float(s) for s in scores],
        "split": ["test" if p >= prompts - test_prompts else "train" for p in numbers],
    }
    table.update(columns or {})
    pq.write_table(pa.table(table), folder / "index.parquet")
    if pairs == "neighbours":
        rows = [i for i in range(count) if i % seeds]
        pairs = [(names[i], names[i - 1]) for i in rows]
    if pairs is not None:
        assert not isinstance(pairs, str)
        write_pairs(folder, pairs, dict(zip(names, table["prompt_id"], strict=True)))
    latents = torch.randn(count, *LATENTS[family], generator=draw)
    for shard in range(2):
        part = latents[shard::2].contiguous().half()
        save_file({"latents": part}, folder / f"latents-{shard:05d}.safetensors")
    _write_text(folder, family, prompts, draw)
    stated = {
        "format": "steer-tune/1",
        "kind": "scored" if pairs is None else "pairs",
        "count": count,
        "latent_shape": list(LATENTS[family]),
        "stored_dtype": "float16",
        "reward": "toy",
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(stated))
    return folder


def write_pairs(
    folder: Path, pairs: Sequence[tuple[str, str]], prompt_of: dict[str, int], **columns: Any
) -> None:
    winners, losers = [w for w, _ in pairs], [x for _, x in pairs]
    table = {
        "winner": winners,
        "loser": losers,
        "prompt_id": [prompt_of.get(w, 10) for w in winners],
        "margin": [1.0] * len(pairs),
        **columns,
    }
    pq.write_table(pa.table(table), folder / "pairs.parquet")


def _write_text(folder: Path, family: str, prompts: int, draw: torch.Generator) -> None:
    half = prompts // 2
    for number, (start, stop) in enumerate([(0, half), (half, prompts)]):
        tensors: dict[str, Tensor] = {
            name: torch.randn(stop - start, *shape, generator=draw).half()
            for name, shape in TEXT[family].items()
        }
        tensors["prompt_ids"] = torch.arange(10 + start, 10 + stop)
        save_file(tensors, folder / f"text-{number:05d}.safetensors")
    empty = {name: torch.full((1, *shape), 0.5).half() for name, shape in TEXT[family].items()}
    save_file(empty, folder / "text-uncond.safetensors")
    if family == "flux":
        places = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1)
        save_file(
            {"txt_ids": torch.zeros(8, 3), "img_ids": places.float()},
            folder / "text-shared.safetensors",
        )


def latents_of(folder: Path, count: int) -> Tensor:
    """All latents in the index's order, read on their own."""
    from safetensors.torch import load_file

    shards = [load_file(folder / f"latents-{i:05d}.safetensors")["latents"] for i in range(2)]
    return torch.stack([shards[i % 2][i // 2] for i in range(count)])


def tiny_config(folder: Path, data: Path, **more: Any) -> TuneConfig:
    """A short run."""
    given = {"steps": 4, "batch": 4, "lr": 1e-3, "cpu": True, "checkpoint_every": 2}
    return TuneConfig.from_dict(
        {"data": str(data), "out": str(folder), "objective": "dpo", **given, **more}
    )


def rows(out: Path) -> list[dict[str, float]]:
    """What a run logged."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, at any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
