"""`steer tune scorer`: choices to a preference scorer, and what it is worth."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import RecordError, TuneError
from steer.core.files.atomic import file_sha256, write_json
from steer.core.files.folder import check_free
from steer.core.files.versions import versions
from steer.core.weights.reading import fingerprint
from steer.shapes.export import WEIGHTS_FILE
from steer.tune.checks import check_unchanged, own_folder, read_record
from steer.tune.scorer import loop
from steer.tune.scorer.accuracy import Accuracy, accuracy, count_ordered
from steer.tune.scorer.choices import digest, divide, read_choices
from steer.tune.scorer.config import ScorerConfig
from steer.tune.scorer.loop import Loss, Optimisation
from steer.tune.scorer.model import OpenClip, load_open_clip, lock, save_open_clip
from steer.tune.scorer.objective import cosines, pad_rows, preference_loss
from steer.tune.scorer.source import ChoiceBatch, ChoiceSource, FileChoices


BEGUN, RESULT, SCORER = "begun.json", "scorer.json", "scorer"
_CHUNK = 64


def fit(
    config: ScorerConfig, *, source: ChoiceSource | None = None, progress: bool = False
) -> dict[str, Any]:
    """Fine-tune the scorer that `config` describes, or continue it.

    Writes `scorer/` (an open_clip folder: the reward `clip:local-dir:OUT/scorer`), `scorer.json`
    (accuracy on held-out pairs before and after, settings, versions), `scorer.pt` (a checkpoint)
    and `scorer.jsonl` (the losses). A run that was killed continues from its last checkpoint with
    equal results.

    Args:
        config: The run.
        source: The choices, where they are not files; else `config.data`.
        progress: Show a bar on stderr.

    Returns:
        What `scorer.json` holds.

    Raises:
        TuneError: Choices that cannot be read or learned from, a folder that cannot be written or
            was begun with other settings or data.
        NonFiniteError: The loss, at a step that is named with its prompts.
        ValueError, CheckpointError: A model that cannot be had.
    """
    from steer.jobs.device import usable_device

    with own_folder(config.out) as out:
        return _fit(config, out, usable_device(config.device), source, progress)


def _fit(
    config: ScorerConfig, out: Path, device: str, source: ChoiceSource | None, progress: bool
) -> dict[str, Any]:
    clip = load_open_clip(config.model, config.resize)
    source = source if source is not None else make_source(config, clip, device)
    _begin(out, config, clip, source)
    known = read_record(out / RESULT) if (out / RESULT).is_file() else {}
    if known and known.get("weights_sha256") == _digest(out):
        return known
    before = measure(clip, source, device)
    lock(clip.model, config.unlocked_image, config.unlocked_text)
    train_model(clip, source, out, device, config, progress)
    after = measure(clip, source, device)
    save_open_clip(out / SCORER, clip, getattr(torch, config.stored_dtype))
    result = {
        "reward": f"clip:local-dir:{out / SCORER}",
        "accuracy_before": vars(before),
        "accuracy": vars(after),
        "started_from": {"model": config.model, "version": clip.version},
        "version": fingerprint(clip.model),
        "weights_sha256": _digest(out),
        "data": source.digest,
        "settings": config.settings(),
        "versions": versions(),
    }
    write_json(out / RESULT, result)
    return result


def _digest(out: Path) -> str | None:
    """The SHA-256 of the scorer's weights; None where there are none."""
    path = out / SCORER / WEIGHTS_FILE
    return file_sha256(path) if path.is_file() else None


def train_model(
    clip: OpenClip,
    source: ChoiceSource,
    folder: Path,
    device: str,
    config: ScorerConfig,
    progress: bool = False,
) -> None:
    """Train the model in place; see `loop.train` for its files, errors and resumption."""
    model = clip.model.to(device)
    if config.checkpointing:
        model.set_grad_checkpointing(True)
    recipe = optimisation(config)
    size = loop.share(recipe)
    mixed = _autocast(device, config.dtype)
    loop.train(
        SCORER,
        model,
        choice_loss(clip, source, size, config.smoothing, device, mixed),
        recipe,
        folder,
        config.seed,
        names=lambda rng: source.names(size, rng),
        checkpoint_every=config.checkpoint_every,
        progress=progress,
    )


def choice_loss(
    clip: OpenClip,
    source: ChoiceSource,
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
        scores, mask = pad_rows(scale * cosine, batch.counts)
        target, _ = pad_rows(batch.target.to(device), batch.counts)
        value = preference_loss(scores, target, mask, smoothing)
        best = scores.masked_fill(~mask, float("-inf")).argmax(1) == target.argmax(1)
        return value, {"best_chosen": best.float().mean()}

    return loss


@torch.no_grad()
def measure(clip: OpenClip, source: ChoiceSource, device: str) -> Accuracy:
    """Accuracy on the source's held-out pairs, in float32, in evaluation mode."""
    clip.model.to(device).eval()
    right, pairs = [], []
    for batch in source.held_out(_CHUNK):
        found = _cosines(clip, batch, device).double().cpu().split(batch.counts)
        worth = batch.worth.double().split(batch.counts)
        for scores, own in zip(found, worth, strict=True):
            wins, count = count_ordered(scores.numpy(), own.numpy())
            right.append(wins)
            pairs.append(count)
    try:
        return accuracy(right, pairs)
    except ValueError as error:
        raise TuneError(f"held_out: {error}") from error


def optimisation(config: ScorerConfig) -> Optimisation:
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


def make_source(config: ScorerConfig, clip: OpenClip, device: str) -> ChoiceSource:
    """The choices that a configuration names."""
    folder = Path(config.data).expanduser()
    if folder.is_dir():
        from steer.tune.scorer.latents import LatentChoices

        return LatentChoices.load(folder, clip.preprocess, device)
    train = read_choices(config.data, config.root)
    if config.held_out is not None:
        test = read_choices(config.held_out, config.root)
    else:
        train, test = divide(train, config.test_share, config.seed)
    return FileChoices(train, test, clip.preprocess, digest([*train, *test]))


def _cosines(clip: OpenClip, batch: ChoiceBatch, device: str) -> Tensor:
    ids = clip.tokenizer(batch.texts).to(device)
    return cosines(clip.model, batch.pixels.to(device), ids, batch.counts)


def _autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def _begin(out: Path, config: ScorerConfig, clip: OpenClip, source: ChoiceSource) -> None:
    """Note what a new run is made of, or see that a run under way is made of the same."""
    new = {"settings": config.settings(), "data": source.digest, "weights": clip.version}
    if (out / BEGUN).is_file():
        check_unchanged(out, read_record(out / BEGUN), new)
        return
    try:
        check_free(out, (RESULT, SCORER, f"{SCORER}.pt", f"{SCORER}.jsonl"), "steer tune scorer")
    except RecordError as error:
        raise TuneError(str(error)) from error
    write_json(out / BEGUN, new)
