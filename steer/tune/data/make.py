"""`steer tune data`: a configuration to a finished preference set, continued where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.core.errors import TuneError
from steer.core.types import Reward
from steer.core.weights.reading import fingerprint
from steer.driver.facts import quiet
from steer.rewards.parts import identity
from steer.tune.checks import check_room, own_folder
from steer.tune.data.config import DataConfig
from steer.tune.data.features import Features, denoiser_of
from steer.tune.data.folder import Folder, latents_name, text_name
from steer.tune.data.index import columns, finish
from steer.tune.data.prompts import Prompt, read_prompts
from steer.tune.data.relabel import relabel
from steer.tune.data.sampling import LatentSampler, ScoredLatents, plan, splits
from steer.tune.tables import SHARED, UNCOND


TEXT_SHARD = 1024
"""Prompts per file of text features."""


def make(
    config: DataConfig,
    *,
    pipe: Any = None,
    rewards: Sequence[Reward] | None = None,
    progress: bool = False,
) -> Path:
    """Make the preference set that `config` describes, or continue it.

    A set that is finished is left as it is. Kill it at any time: every file appears whole, and the
    same configuration goes on after the last finished shard with equal results.

    Args:
        config: What to make.
        pipe: The pipeline, where it is loaded already; else `config.pipeline`.
        rewards: Likewise, one per name in `config.rewards`.
        progress: Show a bar on stderr.

    Returns:
        The folder.

    Raises:
        TuneError: A folder that cannot be used or was begun with another configuration, prompts
            that cannot be read, a full disk, no pair left, scores that are all equal.
        RewardError: A score that is not finite.
        ValueError: An unknown reward.
        UnsupportedPipelineError: A pipeline whose text features cannot be cached.
    """
    with own_folder(config.out) as path:
        return _make(config, Folder(path), pipe, rewards, progress)


def _make(
    config: DataConfig, folder: Folder, pipe: Any, rewards: Sequence[Reward] | None, progress: bool
) -> Path:
    if config.samples is not None:
        return relabel(config, folder)
    prompts = read_prompts(config.prompts)
    columns(config.rewards)
    settings = _settings(config, prompts)
    if folder.check(settings) and folder.finished:
        return folder.path
    maker = _Maker(config, folder, prompts, *_load(config, pipe, rewards))
    folder.begin(settings | {"models": maker.models()})
    started = time.perf_counter()
    maker.write_text(progress)
    with _compilation(denoiser_of(maker.pipe)[1]) if config.compile else nullcontext():
        drawn = maker.write_samples(progress)
    provenance = maker.provenance() | {
        "last_run": {"samples": drawn, "seconds": round(time.perf_counter() - started, 1)}
    }
    return finish(config, folder, folder.read_parts(len(maker.shards)), provenance)


@dataclass
class _Maker:
    """One run of the command."""

    config: DataConfig
    folder: Folder
    prompts: list[Prompt]
    pipe: Any
    rewards: list[Reward]

    def __post_init__(self) -> None:
        self.sampler = LatentSampler(self.pipe, self.rewards, self.config)
        self.shards = plan(self.config, self.prompts)
        self.split = splits(self.config, len(self.prompts))

    def models(self) -> dict[str, Any]:
        """What the samples and scores come from, so that nothing else continues them."""
        name, module = denoiser_of(self.pipe)
        parameter = next(module.parameters())
        found = [identity(reward) for reward in self.rewards]
        return {
            "pipeline": type(self.pipe).__name__,
            "denoiser": name,
            "weights": fingerprint(module),
            "scheduler": type(self.pipe.scheduler).__name__,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "rewards": {n: found[i][1] for i, n in enumerate(self.config.rewards)},
        }

    def provenance(self) -> dict[str, Any]:
        models = self.models()
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
        parts = range(0, len(self.prompts), TEXT_SHARD)
        names = [text_name(i) for i in range(len(parts))]
        if all((self.folder.path / name).is_file() for name in [*names, SHARED]):
            return
        texts = [prompt.text for prompt in self.prompts]
        features = Features(self.pipe, self.config.arguments(), _two_texts(texts))
        if features.unconditional is not None:
            self.folder.write_tensors(UNCOND, self._cast_floats(features.unconditional))
        for name, start in tqdm(
            list(zip(names, parts, strict=True)), desc="text features", disable=not progress
        ):
            rows = range(start, min(start + TEXT_SHARD, len(texts)))
            found = [
                features([texts[i] for i in part]) for part in _batches(rows, self.config.batch)
            ]
            try:
                joined = {key: torch.cat([part[key] for part in found]) for key in found[0]}
            except RuntimeError as error:
                raise TuneError(
                    f"text features of another shape in another batch ({error}): where the "
                    "pipeline pads prompts to a length, set it, as in call: {max_sequence_length: "
                    "256}; or set batch: 1"
                ) from error
            self.folder.write_tensors(
                name, {"prompt_ids": torch.tensor(list(rows)), **self._cast_floats(joined)}
            )
        self.folder.write_tensors(SHARED, self._cast_floats(features.layout.shared))

    def write_samples(self, progress: bool) -> int:
        """The shards that are missing; how many samples were drawn."""
        missing = [i for i in range(len(self.shards)) if not self.folder.has(i)]
        total = sum(map(len, self.shards))
        left = sum(len(self.shards[i]) for i in missing)
        drawn = left
        bar = tqdm(total=total, initial=total - left, desc="samples", disable=not progress)
        with quiet(self.pipe), bar:
            for shard in missing:
                parts = []
                for batch in _batches(self.shards[shard], self.config.batch):
                    parts.append(self.sampler.draw(batch, self.prompts))
                    bar.update(len(batch))
                latents = self._cast("latents", torch.cat([part.latents for part in parts]))
                check_room(self.folder.path, latents[0].nbytes * left)
                self._write_shard(shard, latents, parts)
                left -= len(latents)
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


def _load(
    config: DataConfig, pipe: Any, rewards: Sequence[Reward] | None
) -> tuple[Any, list[Reward]]:
    """The rewards first: they are cheap to get wrong."""
    from steer.jobs.device import usable_device
    from steer.jobs.pipelines import dtype_of, load_pipeline
    from steer.rewards import reward

    device = usable_device(config.device)
    if rewards is None:
        rewards = [reward(name, device=device) for name in config.rewards]
    if pipe is None:
        dtype = dtype_of(config.dtype, device, config.pipeline)
        pipe = load_pipeline(config.pipeline, device, dtype)
    return pipe, list(rewards)


@contextmanager
def _compilation(denoiser: torch.nn.Module) -> Iterator[None]:
    """The denoiser's forward compiled; on a CPU with its weights packed in advance."""
    own = denoiser.forward
    cpu = next(denoiser.parameters()).device.type == "cpu"
    options: dict[str, Any] = {"freezing": True} if cpu else {}
    denoiser.forward = torch.compile(own, options=options)
    try:
        yield
    finally:
        denoiser.forward = own


def _two_texts(texts: Sequence[str]) -> tuple[str, str]:
    return texts[0], texts[-1] if len(texts) > 1 else f"not {texts[0]}"


def _batches(items: Any, size: int) -> Iterable[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _content(row: Tensor) -> str:
    """Equal for equal stored latents."""
    data = row.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
