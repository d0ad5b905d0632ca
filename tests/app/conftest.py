"""The page in a browser: one server over the bundled world, and one browser for all tests."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 120_000  # milliseconds: the machine may be busy


@dataclass
class Server:
    """Where the page is, and where its files go."""

    url: str
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    import uvicorn

    from steer.jobs.serving.process import listen
    from steer.jobs.studio.process import make_app
    from steer.jobs.studio.studio import Studio

    studio = Studio.load(folder / "runs", judges=("shapes-vqa",), device="cpu")
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(studio, folder), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", folder)
        server.should_exit = server.force_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")  # put back afterwards, whatever the application sets
        with serving(tmp_path_factory.mktemp("app")) as found:
            yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: install chromium or google-chrome to test the page")
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()
