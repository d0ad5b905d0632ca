"""Addresses of servers."""

from __future__ import annotations

from urllib.parse import urlsplit


LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine."""


def is_address(url: str) -> bool:
    """Whether this is an http(s) address with a host, and without user, password or query."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and parts.username is None and not parts.query and not parts.fragment


def is_open(url: str) -> bool:
    """Whether what is sent there travels unencrypted to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK
