"""`steer tune data`: a configuration to a finished preference set, continued where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.core.errors import TuneError
from steer.core.types import Reward
from steer.jobs.spread.cluster import Cluster
from steer.jobs.spread.crew import check_place, crew
from steer.jobs.spread.worker import Crew
from steer.tune.checks import check_room, own_folder
from steer.tune.data.config import DataConfig
from steer.tune.data.folder import Folder, latents_name, text_name
from steer.tune.data.index import columns, finish
from steer.tune.data.prompts import Prompt, read_prompts
from steer.tune.data.relabel import relabel
from steer.tune.data.sampling import Sample, ScoredLatents, plan, splits
from steer.tune.data.worker import SampleBatch, SetWorker, TextBatch, TextLayout
from steer.tune.tables import SHARED, UNCOND


TEXT_SHARD = 1024
"""Prompts per file of text features."""


def make(
    config: DataConfig,
    *,
    pipe: Any = None,
    rewards: Sequence[Reward] | None = None,
    progress: bool = False,
    cluster: Cluster | None = None,
) -> Path:
    """Make the preference set that `config` describes, or continue it.

    A set that is finished is left as it is. Kill it at any time: every file appears whole, and the
    same configuration goes on after the last finished shard with equal results.

    Args:
        config: What to make.
        pipe: The pipeline, where it is loaded already; else `config.pipeline`.
        rewards: Likewise, one per name in `config.rewards`.
        progress: Show a bar on stderr.
        cluster: Whose workers sample and score, as `steer.jobs.spread.cluster.connected` gives it;
            left out, this process does. The results are the same.

    Returns:
        The folder.

    Raises:
        TuneError: A folder that cannot be used or was begun with another configuration, prompts
            that cannot be read, a full disk, no pair left, scores that are all equal.
        RewardError: A score that is not finite.
        ValueError: An unknown reward.
        UnsupportedPipelineError: A pipeline whose text features cannot be cached.
    """
    if config.samples is None:
        check_place(cluster, config.device, pipe=pipe, rewards=rewards)
    with own_folder(config.out) as path:
        return _make(config, Folder(path), (pipe, rewards), progress, cluster)


def _make(
    config: DataConfig,
    folder: Folder,
    loaded: tuple[Any, Sequence[Reward] | None],
    progress: bool,
    cluster: Cluster | None,
) -> Path:
    if config.samples is not None:
        return relabel(config, folder)
    prompts = read_prompts(config.prompts)
    columns(config.rewards)
    settings = _settings(config, prompts)
    if folder.check(settings) and folder.finished:
        return folder.path
    shards = plan(config, prompts)
    units = sum(-(-len(shard) // config.batch) for shard in shards)
    worker = partial(SetWorker, config, prompts, *loaded)
    with crew(worker, cluster, device=config.device, units=units) as workers:
        maker = _Maker(config, folder, prompts, shards, workers)
        folder.begin(settings | {"models": workers.about})
        started = time.perf_counter()
        maker.write_text(progress)
        drawn = maker.write_samples(progress)
    provenance = maker.provenance() | {
        "last_run": {"samples": drawn, "seconds": round(time.perf_counter() - started, 1)}
    }
    return finish(config, folder, folder.read_parts(len(shards)), provenance)


@dataclass
class _Maker:
    """One run of the command: what the workers make goes into the folder."""

    config: DataConfig
    folder: Folder
    prompts: list[Prompt]
    shards: list[list[Sample]]
    workers: Crew[Any, Any]

    def __post_init__(self) -> None:
        self.split = splits(self.config, len(self.prompts))

    def provenance(self) -> dict[str, Any]:
        models = self.workers.about
        return {
            "pipeline": {
                "id": self.config.pipeline,
                "class": models["pipeline"],
                "denoiser": models["denoiser"],
                "weights": models["weights"],
                "scheduler": models["scheduler"],
            },
            "rewards": models["rewards"],
            "device": models["device"],
            "dtype": models["dtype"],
        }

    def write_text(self, progress: bool) -> None:
        """The prompts' features, and those of the negative prompt once."""
        texts = [prompt.text for prompt in self.prompts]
        parts = list(_batches(range(len(texts)), TEXT_SHARD))
        names = [text_name(i) for i in range(len(parts))]
        if all((self.folder.path / name).is_file() for name in [*names, SHARED]):
            return
        size = self.config.batch
        rows = [batch for part in parts for batch in _batches(part, size)]
        batches = [TextBatch(tuple(texts[i] for i in batch)) for batch in rows]
        made = (done for _, done in self.workers.work_all([TextLayout(), *batches]))
        unconditional, shared = next(made)
        if unconditional is not None:
            self.folder.write_tensors(UNCOND, self._cast_floats(unconditional))
        for name, part in tqdm(
            list(zip(names, parts, strict=True)), desc="text features", disable=not progress
        ):
            joined = _joined(list(islice(made, len(_batches(part, size)))))
            self.folder.write_tensors(
                name, {"prompt_ids": torch.tensor(list(part)), **self._cast_floats(joined)}
            )
        self.folder.write_tensors(SHARED, self._cast_floats(shared))

    def write_samples(self, progress: bool) -> int:
        """The shards that are missing; how many samples were drawn."""
        missing = [i for i in range(len(self.shards)) if not self.folder.has(i)]
        total = sum(map(len, self.shards))
        drawn = left = sum(len(self.shards[i]) for i in missing)
        batches = [
            SampleBatch(shard, tuple(batch))
            for shard in missing
            for batch in _batches(self.shards[shard], self.config.batch)
        ]
        found: dict[int, list[ScoredLatents]] = {}
        bar = tqdm(total=total, initial=total - left, desc="samples", disable=not progress)
        with bar:
            for batch, done in self.workers.work_all(batches):
                bar.update(len(batch.samples))
                parts = found.setdefault(batch.shard, [])
                parts.append(done)
                if sum(len(part.latents) for part in parts) < len(self.shards[batch.shard]):
                    continue
                latents = self._cast("latents", torch.cat([part.latents for part in parts]))
                check_room(self.folder.path, latents[0].nbytes * left)
                self._write_shard(batch.shard, latents, parts)
                left -= len(latents)
                del found[batch.shard]
        return drawn

    def _write_shard(self, shard: int, latents: Tensor, parts: Sequence[ScoredLatents]) -> None:
        samples = self.shards[shard]
        self.folder.write_tensors(latents_name(shard), {"latents": latents})
        table: dict[str, Any] = {
            "id": [s.id for s in samples],
            "prompt": [self.prompts[s.prompt_id].text for s in samples],
            "prompt_id": [s.prompt_id for s in samples],
            "seed": [s.seed for s in samples],
            "shard": [latents_name(shard)] * len(samples),
            "row": list(range(len(samples))),
        }
        for name, column in columns(self.config.rewards).items():
            table[column] = [v for part in parts for v in part.scores[name].tolist()]
        if self.config.search is not None:
            table["searched"] = [bool(s.searched) for s in samples]
        table |= {
            "split": [self.split[s.prompt_id] for s in samples],
            "category": [self.prompts[s.prompt_id].category for s in samples],
            "content": [_content(row) for row in latents],
        }
        self.folder.write_table(f"parts/index-{shard:05d}.parquet", table)

    def _cast_floats(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Floats in `stored_dtype`, but for whole numbers (sizes, positions, masks)."""
        return {
            key: self._cast(key, value)
            if value.is_floating_point() and not bool((value == value.round()).all())
            else value
            for key, value in tensors.items()
        }

    def _cast(self, name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():  # tokens of a codebook
            return value.to(torch.int32)
        cast = value.to(getattr(torch, self.config.stored_dtype))
        if not bool(cast.isfinite().all()):
            what = "are not finite" if not bool(value.isfinite().all()) else "do not fit"
            raise TuneError(
                f"stored_dtype={self.config.stored_dtype!r}: values of {name} {what} (up to "
                f"{float(value.abs().max()):.3g}): set stored_dtype: bfloat16 or float32, or "
                "dtype: float32"
            )
        return cast


def _settings(config: DataConfig, prompts: Sequence[Prompt]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    settings = {**config.sampling(), **config.labelling()}
    return {"config": settings, "prompts": {"count": len(prompts), "sha256": digest}}


def _joined(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Text features of all batches of a file."""
    try:
        return {key: torch.cat([part[key] for part in found]) for key in found[0]}
    except RuntimeError as error:
        raise TuneError(
            f"text features of another shape in another batch ({error}): where the pipeline pads "
            "prompts to a length, set it, as in call: {max_sequence_length: 256}; or set batch: 1"
        ) from error


def _batches(items: Any, size: int) -> list[Any]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _content(row: Tensor) -> str:
    """Equal for equal stored latents."""
    data = row.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
