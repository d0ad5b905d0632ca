"""`steer tune reward`: choices to a preference scorer, and what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import RecordError, TuneError
from steer.core.files.atomic import usable, write_json
from steer.core.files.versions import versions
from steer.core.weights.reading import fingerprint
from steer.tune.checks import check_unchanged
from steer.tune.scorer import loop
from steer.tune.scorer.accuracy import Accuracy, accuracy, ordered
from steer.tune.scorer.choices import digest, divide, read_choices
from steer.tune.scorer.config import RewardConfig
from steer.tune.scorer.loop import Loss, Optimisation
from steer.tune.scorer.model import OpenClip, load_open_clip, lock, save_open_clip, soup
from steer.tune.scorer.objective import cosines, padded, preference_loss
from steer.tune.scorer.source import Batch, Files, Source


BEGUN, RESULT, SCORER = "begun.json", "reward.json", "scorer"
_CHUNK = 64


def fit(
    config: RewardConfig, *, source: Source | None = None, progress: bool = True
) -> dict[str, Any]:
    """Fine-tune the scorer that `config` describes, or continue it.

    Writes `scorer/` (an open_clip folder: the reward `clip:local-dir:OUT/scorer`), `reward.json`
    (accuracy on held-out pairs before and after, settings, versions), and per member a checkpoint
    and a log of losses. A run that was killed continues from its last checkpoint with equal
    results.

    Args:
        config: The run.
        source: The choices, where they are not files; else `config.data`.
        progress: Show a bar.

    Returns:
        What `reward.json` holds.

    Raises:
        TuneError: Choices that cannot be read or learned from, a folder that cannot be written or
            was begun with other settings or data.
        NonFiniteError: The loss, at a step that is named with its prompts.
        ValueError, CheckpointError: A model that cannot be had.
    """
    from steer.jobs.device import usable_device

    out = Path(config.out).expanduser()
    device = usable_device(config.device)
    clip = load_open_clip(config.model, config.resize)
    source = source if source is not None else make_source(config, clip, device)
    _begin(out, config, clip, source)
    if (out / RESULT).is_file() and (out / SCORER).is_dir():
        return json.loads((out / RESULT).read_text("utf-8"))
    before = measure(clip, source, device)
    clip.model.to("cpu")  # room for the members
    members = []
    for number in range(config.members):
        member = load_open_clip(config.model, config.resize)
        lock(member.model, config.unlocked_image, config.unlocked_text)
        name = f"member{number}"
        train_member(name, member, source, optimisation(config), out, device, config, progress)
        members.append(member.model.to("cpu"))
    if config.soup:
        members = [clip.model, *members]
    clip.model.load_state_dict(soup(members))
    after = measure(clip, source, device)
    save_open_clip(out / SCORER, clip, getattr(torch, config.store))
    result = {
        "reward": f"clip:local-dir:{out / SCORER}",
        "accuracy_before": vars(before),
        "accuracy": vars(after),
        "started_from": {"model": config.model, "version": clip.version},
        "version": fingerprint(clip.model),
        "data": source.digest,
        "settings": config.settings(),
        "versions": versions(),
    }
    write_json(out / RESULT, result)
    return result


def train_member(
    name: str,
    clip: OpenClip,
    source: Source,
    recipe: Optimisation,
    folder: Path,
    device: str,
    config: RewardConfig,
    progress: bool = True,
) -> None:
    """Train one model in place; see `loop.train` for its files, errors and resumption."""
    model = clip.model.to(device)
    if config.checkpointing:
        model.set_grad_checkpointing(True)
    size = loop.share(recipe)
    mixed = _autocast(device, config.precision)
    loop.train(
        name,
        model,
        choice_loss(clip, source, size, config.smoothing, device, mixed),
        recipe,
        folder,
        config.seed,
        held=lambda rng: source.held(size, rng),
        checkpoint_every=config.checkpoint_every,
        progress=progress,
    )


def choice_loss(
    clip: OpenClip,
    source: Source,
    size: int,
    smoothing: float,
    device: str,
    mixed: AbstractContextManager[Any],
) -> Loss:
    """`preference_loss` on the source's batches of `size` prompts, as `loop.train` asks for it."""
    model = clip.model

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        batch = source.batch(size, rng, noise)
        torch.manual_seed(noise.initial_seed() % 2**63)  # dropout, where the model has any
        with mixed:
            cosine = _cosines(clip, batch, device)
        scale = model.logit_scale.float().exp().clamp(max=100)
        scores, mask = padded(scale * cosine, batch.counts)
        target, _ = padded(batch.target.to(device), batch.counts)
        value = preference_loss(scores, target, mask, smoothing)
        best = scores.masked_fill(~mask, float("-inf")).argmax(1) == target.argmax(1)
        return value, {"best_chosen": best.float().mean()}

    return loss


@torch.no_grad()
def measure(clip: OpenClip, source: Source, device: str) -> Accuracy:
    """Accuracy on the source's held-out pairs, in float32, in evaluation mode."""
    clip.model.to(device).eval()
    right, pairs = [], []
    for batch in source.held_out(_CHUNK):
        found = _cosines(clip, batch, device).double().cpu().split(batch.counts)
        worth = batch.worth.double().split(batch.counts)
        for scores, own in zip(found, worth, strict=True):
            wins, count = ordered(scores.numpy(), own.numpy())
            right.append(wins)
            pairs.append(count)
    try:
        return accuracy(right, pairs)
    except ValueError as error:
        raise TuneError(f"held_out: {error}") from error


def optimisation(config: RewardConfig) -> Optimisation:
    """The optimiser of a configuration; gains, biases and the scale do not decay."""
    return Optimisation(
        config.steps,
        config.batch,
        config.lr,
        min(config.warmup, config.steps),
        config.weight_decay,
        config.ema,
        config.clip,
        (0.9, config.beta2),
        decay_gains=False,
    )


def make_source(config: RewardConfig, clip: OpenClip, device: str) -> Source:
    """The choices that a configuration names."""
    if isinstance(config.data, Mapping):
        if set(config.data) != {"shapes"}:
            raise TuneError(f"data={dict(config.data)!r}: name a file, or {{shapes: FOLDER}}")
        from recipes.shapes_world.scorer import Samples

        try:
            return Samples.load(Path(config.data["shapes"]), clip.preprocess)
        except FileNotFoundError as error:
            raise TuneError(f"data={dict(config.data)!r}: {error}") from error
    if Path(config.data).expanduser().is_dir():
        from steer.tune.scorer.decoded import Decoded

        return Decoded.load(Path(config.data).expanduser(), clip.preprocess, device)
    train = read_choices(config.data, config.root)
    if config.held_out is not None:
        test = read_choices(config.held_out, config.root)
    else:
        train, test = divide(train, config.test_share, config.seed)
    return Files(train, test, clip.preprocess, digest([*train, *test]))


def _cosines(clip: OpenClip, batch: Batch, device: str) -> Tensor:
    ids = clip.tokenizer(batch.texts).to(device)
    return cosines(clip.model, batch.pixels.to(device), ids, batch.counts)


def _autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def _begin(out: Path, config: RewardConfig, clip: OpenClip, source: Source) -> None:
    """Note what a new run is made of, or see that a run under way is made of the same."""
    try:
        usable(out)
        out.mkdir(parents=True, exist_ok=True)
    except (RecordError, OSError) as error:
        raise TuneError(f"out={str(out)!r}: {error}") from error
    new = {"settings": config.settings(), "data": source.digest, "weights": clip.version}
    if (out / BEGUN).is_file():
        check_unchanged(out, json.loads((out / BEGUN).read_text("utf-8")), new)
    else:
        write_json(out / BEGUN, new)
