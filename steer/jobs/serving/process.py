"""The process of `steer serve`: where it listens, its token, and its reward."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable

from steer.core.checks import require_extra
from steer.jobs.reward_loader import RewardLoader
from steer.rewards.remote.wire import TOKEN


PORT = 8420


def read_token(host: str, name: str | None) -> str | None:
    """The token that clients must send.

    Args:
        host: Where the server listens.
        name: The environment variable that holds it; None is `STEER_TOKEN`, which may be unset on a
            host that only this machine reaches.

    Raises:
        ValueError: No token where one is needed, or one that no header can hold.
    """
    token = os.environ.get(name or TOKEN, "")
    if not token and name is not None:
        raise ValueError(f"--token-env {name}: the variable is not set; put the token into it")
    if not token and not is_loopback(host):
        raise ValueError(
            f"--host {host}: other machines reach it, so clients need a token; put one into "
            f"{TOKEN} (for example $(openssl rand -hex 16)), here and where the clients run"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{name or TOKEN}: a token is printable ASCII without spaces")
    return token or None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ValueError where the place is taken or is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "taken by another process" if taken else f"not to be had ({error})"
        raise ValueError(
            f"--host {host} --port {port}: {why}; name another, or --port 0 for a free one"
        ) from error


def serve(
    reward: str,
    loader: RewardLoader,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_env: str | None = None,
    max_pixels: int | None = None,
    max_batch: int | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve a reward until the process is interrupted.

    Args:
        reward: A name, or weights by name, as `steer sample --reward` takes it.
        loader: Where and how it is loaded.
        host: Where to listen.
        port: 0 is a free one.
        token_env: As `read_token` takes it.
        max_pixels, max_batch: Limits of one request; None is that of `Limits`.
        tell: Takes the line that says where it listens, as soon as it does.

    Raises:
        SteerError, ValueError: The place, the token, the limits or the reward cannot be used.
        ImportError: The extra `serve` is not installed.
    """
    require_extra("serve", "fastapi", "uvicorn")
    import uvicorn

    from steer.jobs.serving.app import Limits, make_app

    token = read_token(host, token_env)
    given = {"pixels": max_pixels, "batch": max_batch}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    with listen(host, port) as listening:
        app = make_app(loader.load(reward), limits=limits, token=token)
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])
