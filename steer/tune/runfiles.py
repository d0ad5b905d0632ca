"""The files of a run beside its checkpoints: configuration, log, and what the weights come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer.core.errors import RecordError, TuneError
from steer.core.files.atomic import write_atomic, write_json
from steer.core.files.folder import check_free
from steer.core.files.versions import versions
from steer.tune.checkpointing import checkpoints
from steer.tune.config import TuneConfig
from steer.tune.labels import Labels
from steer.tune.logs import append_line, trim_log


TUNED, LOG, CONFIG, THRESHOLD, SUMMARY = (
    "tuned",
    "log.jsonl",
    "config.yaml",
    "threshold.json",
    "tune.json",
)


_MARK = b"# Written by steer tune run.\n"


class RunFiles:
    """Writes them; does nothing where `active` is false (all but the main process).

    Args:
        out: The run's folder.
        active: Whether this process writes.
    """

    def __init__(self, out: Path, active: bool) -> None:
        self.out, self._active = out, active

    def check(self) -> None:
        """Raise TuneError where a new run would replace files that are not those of a run."""
        config = self.out / CONFIG
        ours = config.is_file() and config.read_bytes().startswith(_MARK)
        if ours or checkpoints(self.out):
            return
        try:
            check_free(self.out, (CONFIG, LOG, THRESHOLD, TUNED), "steer tune run")
        except RecordError as error:
            raise TuneError(str(error)) from error

    def begin(self, config: TuneConfig, labels: Labels | None, step: int) -> None:
        """Record what is to be done; drop what the log says of steps that will be made again."""
        import yaml

        if not self._active:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        values = json.loads(json.dumps(config.to_dict()))
        text = yaml.safe_dump(values, sort_keys=False)
        write_atomic(self.out / CONFIG, _MARK + text.encode())
        if labels is not None and labels.threshold is not None:
            labels.threshold.save(self.out / THRESHOLD)
        trim_log(self.out / LOG, step)

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Append a line: the step and its numbers."""
        if self._active:
            self.out.mkdir(parents=True, exist_ok=True)
            append_line(self.out / LOG, {"step": step, **row})

    def origin(
        self,
        weights: Path,
        step: int,
        config: TuneConfig,
        manifest: Mapping[str, Any],
        labels: Labels | None,
    ) -> None:
        """Write beside the tuned weights what they come from."""
        write_json(
            weights.parent / SUMMARY,
            {
                "weights": weights.name,
                "step": step,
                "config": config.to_dict(),
                "labels": _describe(labels),
                "data": dict(manifest),
                "versions": versions(),
            },
        )


def _describe(labels: Labels | None) -> dict[str, Any] | None:
    """What labels came to, and the threshold behind them, where there is one."""
    if labels is None:
        return None
    threshold = labels.threshold
    return {
        "tau": None if threshold is None else threshold.tau,
        "levels": 0 if threshold is None else len(threshold.prompts),
        "positive": float(labels.labels.mean()),
        "mean_weight": float(labels.weights.mean()),
    }
