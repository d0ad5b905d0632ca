"""Servers of OpenAI's chat protocol on this machine: a tiny random model, and one with faults."""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """An application on a port of this machine, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def picture_of(body: dict[str, Any]) -> Image.Image:
    """The image of a request."""
    uri = body["messages"][0]["content"][0]["image_url"]["url"]
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def question_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][1]["text"]


def completion(text: str, likely: dict[str, float] | None = None) -> dict[str, Any]:
    """A chat completion; `likely` are probabilities of its first token."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = "length"
    if likely is not None:
        top = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in likely.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def model_app(folder: Path) -> FastAPI:
    """A vision-language model of transformers behind the protocol, as vLLM serves one.

    All of its small vocabulary is told: a random model has Yes or No among its likeliest 20 or not.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = {key: body[key] for key in ("model", "logprobs", "top_logprobs", "max_tokens")}
        assert list(asked.values()) == ["tiny", True, 20, 1]
        content = [{"type": "image"}, {"type": "text", "text": question_of(body)}]
        talk = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(talk, add_generation_prompt=True)
        with lock, torch.no_grad():
            inputs = processor(images=picture_of(body), text=text, return_tensors="pt")
            found = model(**inputs).logits[0, -1].softmax(-1).sort(descending=True)
        words = processor.tokenizer.convert_ids_to_tokens(found.indices.tolist())
        likely = dict(zip(words, found.values.tolist(), strict=True))
        return completion(words[0], likely)

    return app


class Faulty:
    """A server that answers with the image's brightness as P(Yes), and with faults in between.

    Attributes:
        faults: What the next requests get instead, in order; None is the usual answer.
        seen: Requests so far.
        most: Most requests at once so far.
        keys: The keys that came with them.
    """

    def __init__(self) -> None:
        self.faults: list[Callable[[], Response | dict[str, Any]] | None] = []
        self.always: Callable[[dict[str, Any]], Any] | None = None
        self.seen = self.most = self._now = 0
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    def _answer(self, body: dict[str, Any], request: Request) -> Any:
        with self._lock:
            self.seen += 1
            self._now += 1
            self.most = max(self.most, self._now)
            self.bodies.append(body)
            self.keys.add(request.headers.get("authorization"))
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(0.01)
            if fault is not None:
                return fault()
            if self.always is not None:
                return self.always(body)
            return sure(brightness(body))
        finally:
            with self._lock:
                self._now -= 1


def brightness(body: dict[str, Any]) -> float:
    """Of a request's image, in [0, 1]."""
    return float(np.asarray(picture_of(body)).mean()) / 255


def sure(yes: float) -> dict[str, Any]:
    """A chat completion with a probability of Yes."""
    return completion("Yes", {"Yes": 0.9 * yes + 1e-6, "No": 0.9 * (1 - yes) + 1e-6})


def failing(status: int, message: str = "out of order") -> Callable[[], Response]:
    return lambda: JSONResponse({"error": {"message": message}}, status)
