"""Soft-TIFA: a prompt as questions, and how sure a vision-language model is of the right answers.

Kamath et al. 2025 (GenEval 2, arXiv:2512.16853). Their questions are not used here: they are the
user's own, or follow from simple prompts (`steer.rewards.vlm.questions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.families import family_of
from steer.rewards.models.clip import default_device
from steer.rewards.vlm.answers import Answerer, Tokens, variants
from steer.rewards.vlm.loading import open_answerer
from steer.rewards.vlm.questions import Question, accepted, as_questions, questions_of


MEANS = ("geometric", "arithmetic")
ASK = "{question} Answer in one word."


class SoftTifaReward(BaseReward):
    """The mean over a prompt's questions of the probability of a right answer, in [0, 1].

    Differentiable with Qwen's models, as `VqaReward`.

    Args:
        name: What the reward calls itself.
        answerer: The model.
        questions: By prompt; a prompt that is missing is taken apart by itself, if it is simple.
        mean: `"geometric"`, near 0 where one question fails, or `"arithmetic"`.
        template: Variables for the model's chat template.
        batch: Most questions asked at once.
    """

    range = (0.0, 1.0)
    needs_prompt = True

    def __init__(
        self,
        name: str,
        answerer: Answerer,
        *,
        questions: Mapping[str, Sequence[Question]] | None = None,
        mean: Literal["geometric", "arithmetic"] = "geometric",
        template: Mapping[str, Any] | None = None,
        batch: int | None = 8,
    ) -> None:
        if mean not in MEANS:
            raise ValueError(f"mean={mean!r}: one of {', '.join(map(repr, MEANS))}")
        self.name, self.family = name, family_of(name)
        self.answerer, self.version = answerer, fingerprint(answerer.model)
        self.differentiable = answerer.patches is not None
        self.questions = dict(questions or {})
        self.mean = mean
        self.template = template
        self.batch = check_batch(batch)
        self.device = answerer.device
        for asked in self.questions.values():
            for question in asked:
                self._tokens(question)

    def ask(self, prompt: str) -> list[Question]:
        """The questions of a prompt.

        Raises:
            ValueError: It has none of its own, and is not simple.
        """
        return list(self.questions.get(prompt) or questions_of(prompt))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt without questions."""
        for prompt in prompts:
            self.ask(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.ask(prompt) for prompt in prompts]
        rows = [row for row, questions in enumerate(asked) for _ in questions]
        flat = [question for questions in asked for question in questions]
        size = self.batch or len(flat)
        logs = torch.cat(
            [
                self._logs(images[rows[i : i + size]], flat[i : i + size])
                for i in range(0, len(flat), size)
            ]
        )
        parts = logs.split([len(questions) for questions in asked])
        if self.mean == "geometric":
            return torch.stack([part.mean().exp() for part in parts])
        return torch.stack([part.exp().mean() for part in parts])

    def _logs(self, images: Tensor, questions: Sequence[Question]) -> Tensor:
        """`(n,)` log-probabilities of a right answer, one question per image."""
        texts = [ASK.replace("{question}", question.text) for question in questions]
        inputs = self.answerer.inputs(images, texts, self.template)
        right = [self._tokens(question) for question in questions]
        every = list(dict.fromkeys(tokens for row in right for tokens in row))
        logs = self.answerer.log_probs(inputs, every)
        own = [
            logs[row, [every.index(tokens) for tokens in found]] for row, found in enumerate(right)
        ]
        return torch.stack([row.logsumexp(0) for row in own]).clamp(max=0)

    def _tokens(self, question: Question) -> list[Tokens]:
        """Every right answer's distinct tokens, each answer in its shortest ways."""
        ways = [
            variants(self.answerer, f"the answer to {question.text!r}", spellings)
            for spellings in accepted(question.answers)
        ]
        return list(dict.fromkeys(tokens for found in ways for tokens in found))


def soft_tifa(
    model: str,
    *,
    questions: Mapping[str, Any] | str | Path | None = None,
    mean: Literal["geometric", "arithmetic"] = "geometric",
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 8,
    revision: str | None = None,
    template: Mapping[str, Any] | None = None,
) -> SoftTifaReward:
    """Soft-TIFA by any image-text-to-text model of transformers.

    The reward `"soft-tifa:Qwen/Qwen3-VL-4B-Instruct"` is the geometric mean, GenEval 2's score of a
    prompt; with `mean="arithmetic"`, its score of atoms, the name ends in `-arithmetic`.

    Args:
        model: Hub id, or a folder with weights, config and processor.
        questions: `{prompt: [[question, answer], ...]}`, or a JSON file of it. An answer may be a
            list of right ones; numbers are right as a word and as a digit. Prompts that it lacks
            are taken apart where they are simple (things with counts, colours and places).
        mean: Over a prompt's questions.
        checkpoint: A local folder in place of the hub.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default the stored one.
        batch: Most questions asked at once.
        revision: Commit, tag or branch on the hub; default its main branch.
        template: Variables for the chat template, as `{"enable_thinking": False}`.

    Raises:
        ValueError: Questions of another form, an answer that the vocabulary lacks, an unknown mean,
            or `batch` below 1. Scoring a prompt that has no questions raises one too.
        CheckpointError: A model or a file that cannot be found or read.
    """
    own = as_questions(questions) if questions is not None else None
    answerer = open_answerer(model, checkpoint, revision, default_device(device), dtype)
    name = f"soft-tifa:{model}" if mean == "geometric" else f"soft-tifa:{model}-{mean}"
    options: dict[str, Any] = {"template": template, "batch": batch}
    return SoftTifaReward(name, answerer, questions=own, mean=mean, **options)
