"""What the environment says, read once and validated. No other module of the product reads it.

Precedence is the reader's business: a command line option, then these settings, then a default of the code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from toolhost_sdk.errors import UsageError

DEFAULT_PORT = 7420
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class SettingsError(UsageError):
    """An environment variable holds something it cannot mean. `details["variable"]` names it."""

    code = "settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The environment's part of the configuration.

    Args:
        home: directory of all state (`TOOLHOST_HOME`, default `~/.local/share/toolhost`).
        port: port of the host that `serve` starts (`TOOLHOST_PORT`, default 7420; 0 lets the kernel choose).
        url: a running host to talk to instead of the one in `home` (`TOOLHOST_URL`).
        token: bearer token for it (`TOOLHOST_TOKEN`); never part of a repr.
        ray_address: cluster to join instead of starting a local Ray (`RAY_ADDRESS`).
        runtime_dir: the session's short-lived directory (`XDG_RUNTIME_DIR`), when it has one.
        search_path: where programs are looked up (`PATH`), for `doctor` and for the shell's default environment.
        advertise_host: host name in tool URLs as servers advertise it (`TOOLHOST_ADVERTISE_HOST`).
        relay_host: what replaces it on a node that reaches it through a tunnel (`TOOLHOST_RELAY_HOST`).
    """

    home: Path
    port: int = DEFAULT_PORT
    url: str | None = None
    token: str | None = field(default=None, repr=False)
    ray_address: str | None = None
    runtime_dir: Path | None = None
    search_path: str = DEFAULT_PATH
    advertise_host: str | None = None
    relay_host: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read and validate.

        Args:
            environ: usually `os.environ`; an empty value counts as not set.

        Raises:
            SettingsError: a value out of its range; the message names the variable and what it may hold.
        """
        given = {name: value for name, value in environ.items() if value}
        runtime_dir = given.get("XDG_RUNTIME_DIR")
        return cls(
            home=_home(given),
            port=parse_port(given.get("TOOLHOST_PORT", str(DEFAULT_PORT)), variable="TOOLHOST_PORT"),
            url=_url(given.get("TOOLHOST_URL")),
            token=_token(given.get("TOOLHOST_TOKEN")),
            ray_address=given.get("RAY_ADDRESS"),
            runtime_dir=Path(runtime_dir) if runtime_dir and runtime_dir.startswith("/") else None,
            search_path=given.get("PATH", DEFAULT_PATH),
            advertise_host=given.get("TOOLHOST_ADVERTISE_HOST"),
            relay_host=given.get("TOOLHOST_RELAY_HOST"),
        )

    @classmethod
    def from_process(cls) -> Self:
        """`from_env` of this process. Raises as it does."""
        return cls.from_env(os.environ)


@contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a library that reads its own from this process; put back what was there on exit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def parse_port(value: str, *, variable: str) -> int:
    """A port number from 0 to 65535, or a `SettingsError` that names *variable*."""
    if not value.isascii() or not value.isdigit() or int(value) > 65535:
        raise SettingsError(f"{variable} is {value!r}; it may be a port from 0 to 65535", variable=variable)
    return int(value)


def _home(given: Mapping[str, str]) -> Path:
    if (value := given.get("TOOLHOST_HOME")) is None:
        base = Path(given["HOME"]) if "HOME" in given else Path.home()
        return base / ".local" / "share" / "toolhost"
    if not value.startswith(("/", "~/")):
        raise SettingsError(
            f"TOOLHOST_HOME is {value!r}; it may be an absolute path, or one that starts with ~/",
            variable="TOOLHOST_HOME",
        )
    return Path(given.get("HOME", str(Path.home()))) / value[2:] if value.startswith("~/") else Path(value)


def _url(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if "@" in value or "?" in value:  # what is there may be a secret, so the message does not hold it
        raise SettingsError(
            "TOOLHOST_URL holds a user or a query; it may be http://HOST:PORT, and TOOLHOST_TOKEN holds the token",
            variable="TOOLHOST_URL",
        )
    if not valid or parts.fragment:
        raise SettingsError(
            f"TOOLHOST_URL is {value!r}; it may be http://HOST:PORT or https://HOST:PORT",
            variable="TOOLHOST_URL",
        )
    return value.rstrip("/")


def _token(value: str | None) -> str | None:
    if value is not None and (not value.isascii() or not value.isprintable() or " " in value):
        raise SettingsError(  # the value is a secret, so the message does not hold it
            "TOOLHOST_TOKEN holds a character that no token has", variable="TOOLHOST_TOKEN"
        )
    return value
