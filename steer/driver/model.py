"""What a search may use of a pipeline besides its denoiser: decoding, and frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import check, decode, returned, unfitted
from steer.driver.decoding.previews import PreviewDecoder
from steer.driver.facts import execution_device, jump_argument, makes_videos
from steer.driver.freeze import check_resident, frozen


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline as a search sees it.

    Attributes:
        asked: What the call asked the pipeline for, and what it prepared its latents for.
        finish: What the pipeline makes of clean latents before it decodes them (inpainting puts
            the given image back).
        previewer: What decodes previews; None for the pipeline's own decoder.
    """

    _pipe: Any
    asked: Asked = field(default_factory=Asked)
    finish: Callable[[Tensor], Tensor] = lambda latents: latents
    previewer: PreviewDecoder | None = None

    @property
    def name(self) -> str:
        """The pipeline's class, for errors."""
        return type(self._pipe).__name__

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return execution_device(self._pipe)

    @property
    def videos(self) -> bool:
        """Whether its outputs are videos."""
        return makes_videos(self._pipe)

    @property
    def is_flow_map(self) -> bool:
        """Whether its denoiser is told where a step leads, and answers for any such jump."""
        return jump_argument(self._pipe) is not None

    def decode(
        self, latents: Tensor, grad: bool = False, by: PreviewDecoder | None = None
    ) -> Tensor:
        """Latents to images `(B, 3, H, W)` or videos `(B, F, 3, H, W)`, float32 in [0, 1].

        By the pipeline's own decoder, unless another one is given.
        """
        with torch.set_grad_enabled(grad):
            latents = self.finish(latents)
        return decode(self._pipe, latents, grad=grad, asked=self.asked, by=by)

    def unfitted(self, latents: Tensor) -> int:
        """Decodes by the pipeline's own decoder that previews of these are first fitted to."""
        by = self.previewer
        return 0 if by is None else unfitted(self._pipe, latents, self.asked, by)

    def check_decodes(self, latents: Tensor) -> None:
        """Raise UnsupportedPipelineError where `decode` would, without running the VAE."""
        check(self._pipe, latents, self.asked)

    def returned(self, images: Tensor) -> Tensor:
        """What the pipeline returned with `output_type="pt"`, in [0, 1], float32."""
        return returned(self._pipe, images)

    def frozen(self) -> AbstractContextManager[None]:
        """Set `requires_grad=False` on all weights of the pipeline; restored afterwards."""
        return frozen(self._pipe)

    def check_resident(self) -> None:
        """Raise UnsupportedPipelineError where offloading takes weights away before a backward."""
        check_resident(self._pipe)
