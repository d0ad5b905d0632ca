"""Whether the prompt's quoted text is written in the image, as an OCR model reads it.

Scores by OCR are those of Flow-GRPO's text rendering (Liu et al. 2025, arXiv:2505.05470): one minus
the edit distance per character. There a long text that contains the target scores 1; here every
character beside it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from steer.core.checks import require_extra
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.inputs import as_pictures
from steer.rewards.ocr.likeness import plain_text, written
from steer.rewards.ocr.quotes import quoted


EXTRA = 0.5
_one_at_a_time = Lock()


class OcrReward(BaseReward):
    """How well the texts in the prompt's quotes are written, in [0, 1]; not differentiable.

    Args:
        case: Whether upper and lower case differ.
        spacing: Whether spaces count.
        extra: What text that was not asked for costs, as a share of its own share of all text
            that is read: 0 ignores it, 1 halves the score where half of the text is extra.
        threads: Of the OCR model; None is one per core.
        batch: Most images moved to the CPU at once.

    Raises:
        ValueError: `extra` outside [0, 1], `threads` or `batch` below 1.
        ImportError: The extra `ocr` is not installed.
    """

    name = "ocr"
    family = "ocr"
    differentiable = False
    range = (0.0, 1.0)
    needs_prompt = True

    def __init__(
        self,
        *,
        case: bool = False,
        spacing: bool = False,
        extra: float = EXTRA,
        threads: int | None = None,
        batch: int | None = 32,
    ) -> None:
        if not 0 <= extra <= 1:
            raise ValueError(f"extra={extra!r}: must be in [0, 1]; 0 ignores text not asked for")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads!r}: must be at least 1, or None for one per core")
        require_extra("ocr", "rapidocr", "onnxruntime")
        self.case, self.spacing, self.extra, self.threads = case, spacing, extra, threads
        self.batch = check_batch(batch)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt without a text in quotes."""
        for prompt in prompts:
            if not self._targets(prompt):
                raise ValueError(
                    f"reward 'ocr' reads the text in quotes, and prompt {prompt!r} has none: write "
                    'it as in: a sign that says "OPEN"'
                )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.check_prompts(prompts)
        pairs = zip(as_pictures(images), prompts, strict=True)
        return torch.tensor([self._score(image, prompt) for image, prompt in pairs])

    def read(self, image: Image.Image) -> list[str]:
        """The lines of text in an RGB image, as they were read."""
        with _one_at_a_time:  # its engines keep the last call's settings in themselves
            return list(_reader(self.threads)(image).txts or ())

    def _score(self, image: Image.Image, prompt: str) -> float:
        lines = [text for text in map(self._plain, self.read(image)) if text]
        gap = " " if self.spacing else ""
        return written(self._targets(prompt), lines, gap=gap, extra=self.extra)

    def _targets(self, prompt: str) -> list[str]:
        return [self._plain(text) for text in quoted(prompt)]

    def _plain(self, text: str) -> str:
        return plain_text(text, case=self.case, spacing=self.spacing)


def ocr(
    *,
    case: bool = False,
    spacing: bool = False,
    extra: float = EXTRA,
    threads: int | None = None,
    batch: int | None = 32,
) -> OcrReward:
    """`OcrReward`; the models are in rapidocr's wheel (PP-OCR), nothing is downloaded."""
    return OcrReward(case=case, spacing=spacing, extra=extra, threads=threads, batch=batch)


@cache
def _reader(threads: int | None) -> Any:
    """The OCR model, silent; made once per process."""
    from rapidocr import RapidOCR

    params: dict[str, Any] = {"Global.log_level": "critical"}
    if threads is not None:
        params["EngineConfig.onnxruntime.intra_op_num_threads"] = threads
    return RapidOCR(params=params)
