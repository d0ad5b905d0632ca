"""The process of `steer app`: where it listens, its temporary folder, and its page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steer.core.checks import require_extra
from steer.core.warn import warn
from steer.jobs.serving.process import is_loopback, listen
from steer.jobs.studio.studio import Studio


PORT = 7860

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:"
)
"""What a browser may fetch: nothing from elsewhere, whatever gradio's page names."""


class _OnlyHere:
    """Every answer tells the browser to fetch nothing from other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, sent)


def open_studio(
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    tell: Callable[[str], None] = print,
    **given: Any,
) -> None:
    """Serve the page until the process is interrupted; its results are deleted then.

    Args:
        host: Where to listen; others than this machine are warned of.
        port: 0 is a free one.
        tell: Takes the address, as soon as the page is there.
        **given: As for `Studio.load`.

    Raises:
        SteerError, ValueError: The place, the pipeline, a reward or a judge cannot be used.
        ImportError: The extra `app` is not installed.
    """
    require_extra("app", "gradio", "fastapi", "uvicorn")
    if not is_loopback(host):
        warn(
            f"--host {host}: whoever reaches this machine can draw with its pipeline, without a "
            "password; leave --host out, and reach the page through a tunnel (ssh -L)"
        )
    with (
        listen(host, port) as listening,
        tempfile.TemporaryDirectory(prefix="steer-app-") as folder,
    ):
        import uvicorn

        studio = Studio.load(Path(folder) / "runs", **given)
        app = make_app(studio, Path(folder))
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


def make_app(studio: Studio, folder: Path) -> Any:
    """The page as an application; gradio's own files go into `folder`, and nothing is sent away."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
    import gradio as gr
    from fastapi import FastAPI

    from steer.jobs.studio.page import make_page
    from steer.jobs.studio.view import styles

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_OnlyHere)  # pyright: ignore[reportArgumentType]
    fonts = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.mount_gradio_app(
        app,
        make_page(studio),
        "/",
        allowed_paths=[str(studio.folder)],
        max_file_size="1kb",  # nothing on the page is uploaded
        theme=gr.themes.Default(primary_hue="indigo", font=fonts[0], font_mono=fonts[1]),
        head=f"<style>{styles()}</style>",  # gradio rewrites what `css` has
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
    )
