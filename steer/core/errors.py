"""steer's errors. Each message names the argument, its value, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


_HINT = re.compile(
    r"weights[ _]only\b|safe_globals|trusted? (the )?source|two options|the following error message"
    r"|trust_remote_code|allow_pickle|use_safetensors=False",
    re.IGNORECASE,
)
AGAIN = "use BestOfN or a Gate around it, which call the pipeline again for every image"
"""The way out where no search can sit in a pipeline's loop."""


def in_a_call(pipeline: str) -> str:
    """The sentence for a call that finds the pipeline in the middle of another one."""
    return (
        f"{pipeline} is in a guided call, and this call comes from inside it or from another "
        "thread's plain pipe(...): load a second pipeline for it, or call guided(pipe, ...) in "
        "every thread, which waits for its turn"
    )


class SteerError(Exception):
    """Base class of steer's errors."""


class UnsupportedPipelineError(SteerError, TypeError):
    """steer cannot run a search in this pipeline, or not in its present state."""


class LaneWidthError(UnsupportedPipelineError):
    """The pipeline does not bear a batch that is wider than the call's own."""


class PaddedLaneError(LaneWidthError):
    """The pipeline's denoiser does not bear a batch that is narrower than the pipeline's."""


class UnsupportedSchedulerError(SteerError, ValueError):
    """The scheduler cannot do what the method needs, such as beginning in the middle."""


class RewardError(SteerError, ValueError):
    """A reward returned the wrong shape or a non-finite score."""


class GradientError(SteerError, ArithmeticError):
    """A gradient that is not finite."""


class CheckpointError(SteerError, ValueError):
    """A checkpoint is missing, corrupt, truncated or does not fit."""


class NotAcceptedError(SteerError, RuntimeError):
    """A gate found no candidate above its threshold and was asked to raise."""


class OutOfMemoryError(SteerError, MemoryError):
    """The call does not fit into memory, nor with half the lane width; caused by torch's error."""


class ThresholdError(SteerError, ValueError):
    """A threshold or calibration cannot be fitted or read, or was made for something else."""


class PlansError(SteerError, ValueError):
    """Plans that cannot be read, or were made for another pipeline, reward or number of steps."""


class RecordError(SteerError, ValueError):
    """A run folder, a score log or an image cannot be read, written, or holds something else."""


class TuneError(SteerError, ValueError):
    """A configuration, a dataset or a checkpoint that training cannot use."""


class NonFiniteError(SteerError, ArithmeticError):
    """The loss, or its gradient, became NaN or infinite.

    Attributes:
        step: The training step that failed; its update was not made.
        ids: The images of its batch.
        checkpoint: The last checkpoint before it; None if none was written yet.
    """

    def __init__(self, what: str, step: int, ids: Sequence[str], checkpoint: Path | None) -> None:
        self.step, self.ids, self.checkpoint = step, tuple(ids), checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"
        super().__init__(
            f"step {step}: {what}; {kept}. The batch: {', '.join(self.ids)}. "
            "Try a smaller learning rate or beta, dtype: bfloat16 or float32, or leave these out"
        )


class NotFiniteError(ValueError):
    """An image holds NaN pixels.

    Attributes:
        index: Its position among all images that were passed.
    """

    def __init__(self, index: int) -> None:
        super().__init__(
            f"images[{index}] has NaN pixels: whatever made it overflowed (a VAE in float16 does; "
            "decode in float32); leave it out"
        )
        self.index = index


class ComparisonError(SteerError, ValueError):
    """A configuration that cannot be used: unknown keys, unfair arms, bad values."""


class PromptsError(SteerError, ValueError):
    """Prompts that are missing, empty, given twice, or cannot be fetched."""


class FolderError(SteerError, ValueError):
    """A folder that holds another comparison, or cannot be written (a full disk, for example)."""


class WorkersError(SteerError, RuntimeError):
    """Workers of a cluster that are lost again and again, or have other versions of packages."""


class PipelineNotFoundError(SteerError, ValueError):
    """The pipeline's name leads nowhere."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, to be told inside one of steer's.

    Without its full stop, 300 characters at most; the error's class where it says nothing.
    Sentences that tell how to run code from a file, as torch's and transformers' errors do, are
    left out.
    """
    lines = [line for line in map(_without_hints, str(error).splitlines()) if line]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _without_hints(line: str) -> str:
    sentences = re.split(r"(?<=[.!?])\s+", line.strip())
    return " ".join(sentence for sentence in sentences if not _HINT.search(sentence))
