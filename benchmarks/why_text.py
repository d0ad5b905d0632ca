"""The trainer of why_tuning.py's arms that train the text encoder, by the gradient of the reward.

steer's own trainer leaves text encoders as they are (TextCraftor, arXiv:2403.18978, trains one so).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from why_arms import Trained

from steer.tune import TuneConfig
from steer.tune.policy import Policy
from steer.tune.trajectories.trainer import SampledTrainer


def widen(policy: Policy, pipe: Any, trained: Sequence[Trained]) -> None:
    """Let what a policy trains, keeps and loads be these parts of a pipeline."""
    denoiser = policy.parameters

    def parameters() -> dict[str, nn.Parameter]:
        found = denoiser() if "denoiser" in trained else {}
        if "text_encoder" in trained:
            own = pipe.text_encoder.named_parameters(prefix="text_encoder")
            found = {**found, **dict(own)}
        return found

    policy.parameters = parameters


class TextTrainer(SampledTrainer):
    """Sampling runs whose features carry gradients to the text encoder.

    Args:
        config: With `sampling`, without guidance.
        pipe: A `StableDiffusionPipeline` or one with its `encode_prompt`.
        reward: Differentiable.
        trained: Parts of the pipeline.
    """

    def __init__(
        self, config: TuneConfig, pipe: Any, reward: Any, trained: Sequence[Trained]
    ) -> None:
        self._trained = trained
        super().__init__(config, pipe, reward=reward)
        self.pipe.text_encoder.requires_grad_(True)
        if "denoiser" not in trained:
            self.policy.module.requires_grad_(False)
        self._frozen, self.sampler.text = self.sampler.text, self._text

    def _prepare(self) -> None:
        widen(self.policy, self.pipe, self._trained)
        super()._prepare()

    def _text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.enable_grad():
            given = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            features, _ = self.pipe.encode_prompt(list(prompts), self.pipe.device, **given)
        return {**self._frozen(prompts), "encoder_hidden_states": features}
