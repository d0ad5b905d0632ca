"""VQAScore: how sure a vision-language model is that the image shows the prompt.

P("Yes") / (P("Yes") + P("No")) of the first token after 'Does this figure show "..."? Please answer
yes or no.', after Lin et al. 2024 (arXiv:2404.01291), who take P("Yes") alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.models.clip import default_device
from steer.rewards.vlm.answers import Answerer, variants
from steer.rewards.vlm.loading import open_answerer


QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")


class VqaReward(BaseReward):
    """How much more likely "Yes" is than "No", in [0, 1].

    Differentiable with Qwen's models (Qwen2-VL, Qwen2.5-VL, Qwen3-VL), whose images stay tensors.
    With all others images pass through 8 bits and the model's processor.

    Args:
        name: What the reward calls itself.
        answerer: The model.
        question: Has `{prompt}` where the prompt goes.
        yes: Ways to write the answer. Their probabilities are added; ways that the vocabulary
            splits into more tokens than the shortest are left out, and so are equal ones.
        no: Ways to write the opposite.
        normalise: Score yes / (yes + no); else the probability of yes among all words.
        template: Variables for the model's chat template.
        batch: Most images scored at once.
    """

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
        normalise: bool = True,
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
        self.differentiable = answerer.patches is not None
        self.yes = variants(answerer, "yes", yes, single=yes == YES)
        self.no = variants(answerer, "no", no, single=no == NO) if normalise else []
        if set(self.yes) & set(self.no):
            raise ValueError(f"yes={yes!r} and no={no!r} have the same tokens: they must differ")
        self.template = template
        self.batch = check_batch(batch)
        self.device = answerer.device

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        inputs = self.answerer.inputs(images, questions, self.template)
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
    normalise: bool = True,
    template: Mapping[str, Any] | None = None,
) -> VqaReward:
    """VQAScore by any image-text-to-text model of transformers.

    The reward `"vqa:Qwen/Qwen3-VL-4B-Instruct"` is `vqa("Qwen/Qwen3-VL-4B-Instruct")`. With
    `normalise=False` the score is the paper's: the probability of "Yes" under the full vocabulary.
    (For some models the authors' code also counts the mark of the end, and averages the
    log-probabilities.)

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
        normalise: Score yes / (yes + no), which is steadier where a model likes other words as
            well; else yes alone, under a name that ends in `-absolute`.
        template: Variables for the chat template, as `{"enable_thinking": False}`.

    Raises:
        ValueError: A question without `{prompt}`, an answer that the vocabulary lacks, a vocabulary
            that splits "Yes" or "No" (unless `yes=` and `no=` say what to take), or `batch` below
            1.
        CheckpointError: A model that cannot be found, read, or is of another kind.
    """
    answerer = open_answerer(model, checkpoint, revision, default_device(device), dtype)
    options: dict[str, Any] = {"question": question, "yes": yes, "no": no, "batch": batch}
    name = f"vqa:{model}" if normalise else f"vqa:{model}-absolute"
    return VqaReward(name, answerer, normalise=normalise, template=template, **options)
