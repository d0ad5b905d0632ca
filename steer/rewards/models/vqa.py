"""VQAScore: how sure a vision-language model is that the image shows the prompt.

P("Yes" | image, 'Does this figure show "..."? Please answer yes or no.'), Lin et al. 2024
(arXiv:2404.01291).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.models.answers import Answerer, Tokens, folder_stamps, load_answerer
from steer.rewards.models.clip import default_device


QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
YES, NO = ("Yes", " Yes"), ("No", " No")


class VqaReward(BaseReward):
    """The probability of "Yes", in [0, 1]; not differentiable, images pass through 8 bits.

    Args:
        name: What the reward calls itself.
        answerer: The model.
        question: Has `{prompt}` where the prompt goes.
        yes: Ways to write the answer. Their probabilities are added; ways that the vocabulary
            splits into more tokens than the shortest are left out, and so are equal ones.
        no: Ways to write the opposite.
        normalise: Score yes / (yes + no) instead of yes.
        template: Variables for the model's chat template.
        batch: Most images scored at once.
    """

    differentiable = False
    range = (0.0, 1.0)
    needs_prompt = True

    def __init__(
        self,
        name: str,
        answerer: Answerer,
        *,
        question: str = QUESTION,
        yes: Sequence[str] = YES,
        no: Sequence[str] = NO,
        normalise: bool = False,
        template: Mapping[str, Any] | None = None,
        batch: int | None = 8,
    ) -> None:
        if "{prompt}" not in question:
            raise ValueError(
                f"question={question!r} lacks {{prompt}}: write it where the text goes"
            )
        self.name, self.family = name, "vlm"
        self.answerer, self.version = answerer, fingerprint(answerer.model)
        self.question = question
        self.yes = _variants(answerer, "yes", yes)
        self.no = _variants(answerer, "no", no) if normalise else []
        if set(self.yes) & set(self.no):
            raise ValueError(f"yes={yes!r} and no={no!r} have the same tokens: they must differ")
        self.template = template
        self.batch = check_batch(batch)
        self.device = answerer.device

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        inputs = self.answerer.inputs(_pictures(images), questions, self.template)
        logs = self.answerer.log_probs(inputs, [*self.yes, *self.no])
        yes = logs[:, : len(self.yes)].logsumexp(1)
        no = logs[:, len(self.yes) :].logsumexp(1) if self.no else None
        return yes.exp().clamp(max=1) if no is None else (yes - no).sigmoid()


def vqa(
    model: str,
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 8,
    revision: str | None = None,
    question: str = QUESTION,
    yes: Sequence[str] = YES,
    no: Sequence[str] = NO,
    normalise: bool = False,
    template: Mapping[str, Any] | None = None,
) -> VqaReward:
    """VQAScore by any image-text-to-text model of transformers.

    The reward `"vqa:Qwen/Qwen2.5-VL-3B-Instruct"` is `vqa("Qwen/Qwen2.5-VL-3B-Instruct")`. The
    score is the paper's: the probability of the answer under the full vocabulary. (For some models
    the authors' code also counts the mark of the end, and averages the log-probabilities.)

    Args:
        model: Hub id, or a folder with weights, config and processor.
        checkpoint: A local folder in place of the hub.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default the stored one.
        batch: Most images scored at once.
        revision: Commit, tag or branch on the hub; default its main branch.
        question: Has `{prompt}` where the prompt goes.
        yes: Ways to write the answer, as for `VqaReward`.
        no: Ways to write the opposite, as for `VqaReward`.
        normalise: Score yes / (yes + no): steadier where a model likes other words as well.
        template: Variables for the chat template, as `{"enable_thinking": False}`.

    Raises:
        ValueError: A question without `{prompt}`, an answer that the vocabulary lacks, or `batch`
            below 1.
        CheckpointError: A model that cannot be found, read, or is of another kind.
    """
    source = os.path.expanduser(checkpoint or model)
    answerer = load_answerer(source, revision, folder_stamps(source), default_device(device), dtype)
    options: dict[str, Any] = {"question": question, "yes": yes, "no": no, "batch": batch}
    name = f"vqa:{model}-normalised" if normalise else f"vqa:{model}"
    return VqaReward(name, answerer, normalise=normalise, template=template, **options)


def _variants(answerer: Answerer, option: str, answers: Sequence[str]) -> list[Tokens]:
    """The distinct token sequences of the shortest length."""
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{option}={answers!r}: pass a list of ways to write the answer")
    found = dict.fromkeys(answerer.tokens(answer) for answer in answers)
    shortest = min(map(len, found))
    return [tokens for tokens in found if len(tokens) == shortest]


def _pictures(images: Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` floats in [0, 1] as 8-bit RGB images, in one transfer."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]
