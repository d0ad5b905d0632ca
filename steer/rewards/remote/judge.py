"""A vision-language model behind any OpenAI-compatible server as a reward.

VQAScore (Lin et al. 2024, arXiv:2404.01291) as far as the protocol reaches: the probability of
"Yes" against "No" at the answer's first token. Where a server tells no probabilities, the model is
asked for a number instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor

from steer.core.checks import one_of, positive, require_extra, whole
from steer.core.errors import RewardError
from steer.core.spent import Spent, bill
from steer.core.warn import warn
from steer.rewards.base import BaseReward
from steer.rewards.inputs import as_pictures
from steer.rewards.remote.addresses import is_address, is_open
from steer.rewards.remote.answers import Answers, answer_key
from steer.rewards.remote.replies import TOP, Reply, Usage, read_number, yes_probability


if TYPE_CHECKING:
    from steer.rewards.remote.chat import Chat


Form: TypeAlias = Literal["auto", "logprobs", "number"]
_FIELDS: dict[Form, dict[str, Any]] = {
    "logprobs": {"logprobs": True, "top_logprobs": 20, "max_tokens": 1},
    "number": {"max_tokens": 16},
}

QUESTION = 'Does this image show "{prompt}"? Answer Yes or No.'
NUMBER_QUESTION = (
    f'How well does this image show "{{prompt}}", from 0 (not at all) to {TOP} (in every detail)? '
    "Answer with the number only."
)
CACHE = "STEER_REWARD_CACHE"
"""The environment variable that names the cache where the option does not."""

logger = logging.getLogger("steer.rewards")


@dataclass(frozen=True)
class _Ask:
    image: Image.Image = field(repr=False)
    prompt: str


class RemoteJudge(BaseReward):
    """How sure a model on a server is that the image shows the prompt, in [0, 1].

    Not differentiable; images travel as PNG files of 8 bits. Equal questions about equal images are
    asked once. Requests that are under way when another one fails are still waited for, and kept.

    Attributes:
        spent: Requests and tokens so far; those of a pipeline call are in its ledger, too.
        url: Where the model is.

    Args:
        name: What the reward calls itself.
        chat: The model.
        form: `"logprobs"` is the probability of Yes, `"number"` a number that the model writes;
            `"auto"` is the first where the server tells log-probabilities, else the second; it is
            replaced by what the first answer shows.
        question: For Yes or No; has `{prompt}` where the prompt goes.
        number_question: For a number from 0 to 10; likewise.
        concurrency: Requests at once.
        cache: Folder where scores are kept.

    Raises:
        ValueError: An unknown form, a question without `{prompt}`, `concurrency` below 1, or a
            folder that cannot be made.
    """

    family = "vlm"
    differentiable = False
    range = (0.0, 1.0)
    needs_prompt = True
    batch = None

    def __init__(
        self,
        name: str,
        chat: Chat,
        *,
        form: Form = "auto",
        question: str = QUESTION,
        number_question: str = NUMBER_QUESTION,
        concurrency: int = 8,
        cache: str | Path | None = None,
    ) -> None:
        one_of("form", form, get_args(Form))
        whole("concurrency", concurrency, "concurrency=8")
        self.questions = {"logprobs": question, "number": number_question}
        for option, text in (("question", question), ("number_question", number_question)):
            if "{prompt}" not in text:
                raise ValueError(
                    f"{option}={text!r} lacks {{prompt}}: write it where the text goes"
                )
        self.name, self.chat, self.concurrency = name, chat, concurrency
        self.url = chat.url
        self.form: Form = form
        self.spent = Spent()
        self._answers = Answers(cache)

    @property
    def version(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The form, and a digest of the questions and of the request's further fields."""
        asked = json.dumps([self.questions, self.chat.request], sort_keys=True)
        return f"{self.form}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asks = [_Ask(*pair) for pair in zip(as_pictures(images), prompts, strict=True)]
        settled = self.form == "auto" and self._settle(asks[0])
        keys = [self._key(ask, self.form) for ask in asks]
        todo = {key: ask for key, ask in zip(keys, asks, strict=True) if not self._knows(key)}
        bill(Spent(reused=len(asks) - len(todo) - settled), self.spent)
        if todo:
            self._ask_all(todo)
        return torch.tensor([self._answers.get(key) for key in keys], dtype=torch.float32)

    def _ask_all(self, todo: Mapping[str, _Ask]) -> None:
        """Put the scores of all that is asked into the cache, each when it comes."""
        pool = ThreadPoolExecutor(min(self.concurrency, len(todo)), thread_name_prefix="judge")
        try:
            asked = todo.items()
            runs = [pool.submit(copy_context().run, self._ask, key, ask) for key, ask in asked]
            for done in runs:
                done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, key: str, ask: _Ask) -> None:
        self._keep(key, ask, self.form, self._reply(ask, self.form))

    def _settle(self, ask: _Ask) -> bool:
        """Find out by one question which form the server serves, unless the cache tells; whether
        the answer is a score."""
        from steer.rewards.remote.chat import RefusedError

        for form in _FIELDS:
            if self._knows(self._key(ask, form)):
                self.form = form
                return False
        try:
            reply = self._reply(ask, "logprobs")
        except RefusedError as error:
            if "logprob" not in str(error).lower():
                raise
            reply = None
        if reply is not None and reply.first_words:
            self.form = "logprobs"
            self._keep(self._key(ask, self.form), ask, self.form, reply)
            logger.info("%s: scores are probabilities of Yes", self.name)
            return True
        self.form = "number"
        warn(
            f"reward {self.name!r}: the server tells no log-probabilities, so scores are "
            f"numbers from 0 to {TOP} that the model writes, which tie often; form='number' says "
            "that this is expected"
        )
        return False

    def _reply(self, ask: _Ask, form: Form) -> Reply:
        try:
            reply = self.chat.ask(ask.image, self._question(ask, form), **_FIELDS[form])
        except RewardError as error:
            raise self._named(error) from error.__cause__
        usage = reply.usage or Usage.model_construct()
        bill(Spent(1, 0, usage.prompt_tokens, usage.completion_tokens), self.spent)
        return reply

    def _keep(self, key: str, ask: _Ask, form: Form, reply: Reply) -> None:
        try:
            if form == "number":
                score = read_number(reply.text)
            elif reply.first_words:
                score = yes_probability(reply.first_words)
            else:
                raise RewardError(
                    f"{self.chat.url} tells no log-probabilities: ask with form='number'"
                )
        except RewardError as error:
            raise self._named(error) from None
        question = self._question(ask, form)
        self._answers.put(key, score, model=self.chat.model, form=form, question=question)

    def _named(self, error: RewardError) -> RewardError:
        return type(error)(f"reward {self.name!r}: {error}")

    def _question(self, ask: _Ask, form: Form) -> str:
        return self.questions[form].replace("{prompt}", ask.prompt)

    def _knows(self, key: str) -> bool:
        return self._answers.get(key) is not None

    def _key(self, ask: _Ask, form: Form) -> str:
        return answer_key(
            ask.image.tobytes(),
            size=ask.image.size,
            model=self.chat.model,
            form=form,
            question=self._question(ask, form),
            request=self.chat.request,
        )


def openai(
    target: str,
    *,
    form: Form = "auto",
    question: str = QUESTION,
    number_question: str = NUMBER_QUESTION,
    concurrency: int = 8,
    timeout: float = 60.0,
    retries: int = 2,
    cache: str | Path | None = None,
    request: Mapping[str, Any] | None = None,
) -> RemoteJudge:
    """A model behind any server that speaks OpenAI's chat protocol (vLLM, SGLang, llama.cpp, ...).

    The reward `"openai:Qwen/Qwen3-VL-8B-Instruct@http://localhost:8000/v1"` is
    `openai("Qwen/Qwen3-VL-8B-Instruct@http://localhost:8000/v1")`. The key, where a server wants
    one, is read from the environment variable `OPENAI_API_KEY`.

    Args:
        target: `<model>@<url>`.
        form, question, number_question, concurrency: As for `RemoteJudge`.
        timeout: Seconds for one request.
        retries: Further attempts after a fault that may pass.
        cache: Folder where scores are kept by image, prompt, model and question; default the
            environment variable `STEER_REWARD_CACHE`, else memory.
        request: Further fields of every request, as
            `{"chat_template_kwargs": {"enable_thinking": False}}`.

    Raises:
        ValueError: A target or an option that cannot be used.
        ImportError: The extra `remote` is not installed.
    """
    model, url = read_target(target)
    positive("timeout", timeout, none=False)
    if type(retries) is not int or retries < 0:
        raise ValueError(f"retries={retries!r}: must be a whole number, 0 or more")
    require_extra("remote", "openai")
    from steer.rewards.remote.chat import KEY, Chat

    if os.environ.get(KEY) and is_open(url):
        warn(f"{url} is not encrypted, and the key in {KEY} travels to it: use https, or unset it")
    chat = Chat(model, url, timeout=timeout, retries=retries, request=request or {})
    return RemoteJudge(
        f"openai:{model}@{url}",
        chat,
        form=form,
        question=question,
        number_question=number_question,
        concurrency=concurrency,
        cache=cache or os.environ.get(CACHE) or None,
    )


def read_target(target: str) -> tuple[str, str]:
    """Model and address of `<model>@<url>`; ValueError where it cannot be read."""
    model, _, url = target.rpartition("@http")
    url = f"http{url}".rstrip("/")
    if not model or not is_address(url):
        raise ValueError(
            f"reward='openai:{target}' cannot be read: write openai:<model>@<url>, as in "
            "openai:Qwen/Qwen3-VL-8B-Instruct@http://localhost:8000/v1, without user or password"
        )
    return model, url
