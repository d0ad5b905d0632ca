"""A judge behind `transformers serve`, a server that others wrote, on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import vlm_models
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from steer.rewards.inputs import as_pictures
from steer.rewards.remote.judge import openai


pytest.importorskip("transformers.cli.serve", reason="this transformers has no `serve` command")
serving = pytest.importorskip("transformers.utils.import_utils")
if not serving.is_serve_available():
    pytest.skip(
        "`transformers serve` lacks packages: pip install 'transformers[serving]'",
        allow_module_level=True,
    )
pytestmark = pytest.mark.slow

PROMPTS = ["a red circle", "a blue square", "a circle left of a square"] * 2
QUESTION = "Does this figure show {prompt}?"
NUMBERS = [str(number) for number in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL whose answers are numbers: words of its vocabulary are renamed, and
    all others suppressed."""
    path = vlm_models.save("qwen2_5_vl", tmp_path_factory.mktemp("served") / "tiny")
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    start = vocabulary["this"]  # words without a space in front, which no question has
    renamed = dict(zip(range(start, start + len(NUMBERS)), NUMBERS, strict=True))
    data["model"]["vocab"] = {renamed.get(i, word): i for word, i in vocabulary.items()}
    file.write_text(json.dumps(data))
    settings = GenerationConfig.from_pretrained(path)
    settings.suppress_tokens = [i for i in vocabulary.values() if i not in renamed]
    settings.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    log = folder.parent / "log"
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, *words], env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file
        )
    try:
        wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def wait(server: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 240) -> None:
    """Until the server answers; fails with its words where it ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.fail(log.read_text()[-2000:])
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer within {seconds:g} s")


@torch.no_grad()
def numbers(folder: Path, images: list[Image.Image]) -> list[float]:
    """The likeliest number after each question, by the model in this process, a share of 10."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = processor.tokenizer.convert_tokens_to_ids(NUMBERS)
    found = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        asked = {"type": "text", "text": QUESTION.replace("{prompt}", prompt)}
        talk = [{"role": "user", "content": [{"type": "image", "image": image}, asked]}]
        inputs = processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        found.append(int(model(**inputs).logits[0, -1, ids].argmax()) / 10)
    return found


def test_it_scores_as_the_model_does_in_this_process(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "STEER_REWARD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    images = torch.rand(6, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    reward = openai(
        f"{folder}@{url}", number_question=QUESTION, request={"max_tokens": 1}, timeout=120.0
    )
    with pytest.warns(UserWarning, match="the server tells no log-probabilities"):
        scores = reward(images, PROMPTS).tolist()
    assert scores == pytest.approx(numbers(folder, as_pictures(images)))
    assert len(set(scores)) > 1
    assert reward.form == "number"
    # one question found the form out, and every token is the server's own count
    assert reward.spent.requests == 7 and reward.spent.completion_tokens == 7
    assert reward.spent.prompt_tokens > 7 * 8
