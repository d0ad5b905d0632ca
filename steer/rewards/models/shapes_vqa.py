"""The bundled world's second judge, `"shapes-vqa"`: a detector that answers what a caption says.

It shares neither weights nor kind nor training pictures with `"shapes"`: a residual network that
finds objects, and the world's own parser in the place of a text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.families import family_of
from steer.rewards.models.clip import default_device
from steer.shapes.captions import parse
from steer.shapes.detector import Detector, answers, load_detector
from steer.shapes.scenes import Spec


NAME = "shapes-vqa"
FILE = "detector.safetensors"


class ShapesVqaReward(BaseReward):
    """How surely what a caption says holds: the geometric mean of its answers, in [0, 1].

    A caption is taken apart into questions (how many objects, how many of each kind, of which size,
    in which relation, on which background; `steer.shapes.detector.answers`), as TIFA does (Hu et
    al. 2023, arXiv:2303.11897), and each is answered with a probability. Differentiable.

    Args:
        model: The detector, in evaluation mode.
        device: Where it is.
        batch: Most images scored at once.

    Raises:
        ValueError: `batch`; on scoring, a caption that is not in the world's grammar.
    """

    name = NAME
    family = family_of(NAME)
    differentiable = True
    range = (0.0, 1.0)
    needs_prompt = True

    def __init__(
        self,
        model: Detector,
        *,
        device: torch.device | None = None,
        batch: int | None = 32,
    ) -> None:
        self.model, self.device, self.version = model, device, fingerprint(model)
        self.batch = check_batch(batch)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a caption that is not in the world's grammar."""
        for prompt in prompts:
            _parsed(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = self.model(images.float())
        scores = images.new_zeros(len(images), dtype=torch.float32)
        for prompt in dict.fromkeys(prompts):
            same = [i for i, text in enumerate(prompts) if text == prompt]
            rows = torch.tensor(same, device=images.device)
            found = answers(seen.rows(rows), _parsed(prompt)).mean(1).exp()
            scores = scores.index_put((rows,), found)
        return scores


def shapes_vqa(
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    batch: int | None = 32,
) -> ShapesVqaReward:
    """The second judge of the shapes world: a probability in [0, 1], higher is better; float32.

    Args:
        checkpoint: Other weights of the same network (`.safetensors`); default the packaged ones.
        device: Default: the accelerator if there is one.
        batch: Most images scored at once.

    Raises:
        ValueError: `batch` below 1.
        CheckpointError: The file is missing, damaged or of another network.
    """
    from steer.shapes import weights_folder

    path = Path(checkpoint) if checkpoint is not None else weights_folder() / "vqa" / FILE
    where = default_device(device)
    try:
        model = load_detector(path, where)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"reward {NAME!r}: checkpoint={str(path)!r} cannot be used ({first_line(error)}): "
            "reinstall steer, or pass checkpoint=FILE (as `python -m recipes.shapes_world --stages "
            "vqa` writes it)"
        ) from error
    return ShapesVqaReward(model, device=where, batch=batch)


@lru_cache(maxsize=1024)
def _parsed(prompt: str) -> Spec:
    return parse(prompt)
