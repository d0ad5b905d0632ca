"""One question about one image to an OpenAI-compatible server, and its faults in one sentence."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Any

import openai
from PIL import Image
from pydantic import ValidationError

from steer.core.errors import RewardError, first_line
from steer.rewards.remote.replies import Reply


KEY = "OPENAI_API_KEY"
_KEPT = "; scores so far are kept"


class RefusedError(RewardError):
    """The server understood the request, and does not want it."""


class Chat:
    """A model behind an address. Its key comes from the environment and is shown nowhere.

    Args:
        model: As the server calls it.
        url: Up to `/v1`.
        timeout: Seconds for one request.
        retries: Further attempts after a fault that may pass (no connection, 408, 409, 429, 500
            and above), by the openai package, with growing pauses.
        request: Further fields of every request.
    """

    def __init__(
        self, model: str, url: str, *, timeout: float, retries: int, request: Mapping[str, Any]
    ) -> None:
        self.model, self.url, self.timeout, self.retries = model, url, timeout, retries
        self.request = dict(request)
        self._key = os.environ.get(KEY, "")
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=url, timeout=timeout, max_retries=retries
        )

    def ask(self, image: Image.Image, question: str, **fields: Any) -> Reply:
        """The reply to a question about an RGB image.

        Raises:
            RewardError: There is none, or it is no chat completion with one answer; one sentence
                that says what to do. `RefusedError` where the request itself is at fault.
        """
        content = [
            {"type": "image_url", "image_url": {"url": _data_uri(image)}},
            {"type": "text", "text": question},
        ]
        if "max_completion_tokens" in self.request:  # its newer name, where a model insists on it
            fields.pop("max_tokens", None)
        asked: Any = {"messages": [{"role": "user", "content": content}], "temperature": 0.0}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, **(asked | fields), extra_body=self.request or None
            )
            reply = Reply.model_validate_json(raw.content)
        except ValidationError as error:
            raise RewardError(
                f"{self.url} answers with something that is no chat completion: see that an "
                "OpenAI-compatible server runs there, and that the address ends as it wants it "
                f"(often in /v1){_KEPT}"
            ) from error
        except openai.OpenAIError as error:
            raise self._told(error) from None  # whose request, with the key, hangs on the error
        if len(reply.choices) != 1:
            raise RewardError(
                f"{self.url} gives {len(reply.choices)} answers to one question: use another "
                f"server{_KEPT}"
            )
        return reply

    def _told(self, error: openai.OpenAIError) -> RewardError:
        tried = f"{self.retries + 1} attempts" if self.retries else "1 attempt"
        if isinstance(error, openai.APITimeoutError):
            return RewardError(
                f"{self.url} gives no answer within timeout={self.timeout:g} s ({tried}): raise "
                f"timeout= or lower concurrency={_KEPT}"
            )
        if isinstance(error, openai.APIConnectionError):
            return RewardError(
                f"{self.url} cannot be reached ({tried}): see that the server runs{_KEPT}"
            )
        if isinstance(error, openai.APIStatusError):
            return self._told_by_status(error, tried)
        return RewardError(f"{self.url}: {self._safe(error)}{_KEPT}")

    def _told_by_status(self, error: openai.APIStatusError, tried: str) -> RewardError:
        code = error.status_code
        if code in (401, 403):
            wrong = "refuses the key in" if self._key else "wants a key, and there is none in"
            return RefusedError(f"{self.url} {wrong} {KEY}: set it to one that the server takes")
        if code == 404:
            return RefusedError(
                f"{self.url} has no model {self.model!r}: name one that it serves, and see "
                "that the address ends as it wants it (often in /v1)"
            )
        if code == 429:
            return RewardError(
                f"{self.url} is asked too much (429, {tried}): lower concurrency=, raise retries=, "
                f"or see to the account's limits{_KEPT}"
            )
        if code < 500:
            return RefusedError(f"{self.url} refuses the request ({code}: {self._safe(error)})")
        return RewardError(
            f"{self.url} fails ({code}: {self._safe(error)}; {tried}): look at the server's "
            f"log{_KEPT}"
        )

    def _safe(self, error: Exception) -> str:
        """What the server says, without the key, should it repeat it."""
        text = first_line(error)
        return text.replace(self._key, "***") if self._key else text


def _data_uri(image: Image.Image) -> str:
    """An image as a PNG in a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
