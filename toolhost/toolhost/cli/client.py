"""The CLI's way to a running host: where it is, and its control API over HTTP.

`http.client` and not a library with more comfort: it starts in no time, and it never hands a loopback request with
a token in it to a proxy that the environment names.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from toolhost.client_config import reachable_url
from toolhost.hosting.home import Home
from toolhost.settings import Settings
from toolhost_sdk.errors import ToolhostError, UnavailableError, error_class

API = "/api/v1"


class NotRunningError(UnavailableError):
    """No host answers where this command looked."""

    code = "not_running"
    retryable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """A running host. *home* and *pid* are known when it runs on this machine."""

    url: str
    token: str | None = field(default=None, repr=False)
    home: Home | None = None
    pid: int | None = None


def find_host(settings: Settings) -> HostAddress:
    """The host that commands talk to: `TOOLHOST_URL` if set, else the one that runs on the home directory.

    The operator's token in the home directory goes to that home's own host only, never to a URL from outside.

    Raises:
        UnavailableError: no host runs there; the message says how to start one.
    """
    if settings.url is not None:
        return HostAddress(url=settings.url, token=settings.token)
    home = Home(settings.home)
    running = home.read_host_file()
    if not is_alive(running.pid):
        raise NotRunningError(
            f"no host runs in {str(home.root)!r} any more: process {running.pid} was killed; "
            "start one with `toolhost serve`"
        )
    return HostAddress(
        url=reachable_url(running.url),
        token=settings.token or _operator_token(home),
        home=home,
        pid=running.pid,
    )


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _operator_token(home: Home) -> str | None:
    try:
        return home.operator_token_file.read_text("ascii").strip() or None
    except (FileNotFoundError, PermissionError):
        return None


class HostClient:
    """Requests to the control API of one host, each on a connection of its own.

    Args:
        address: from `find_host`.
        timeout: seconds that one request may take.
    """

    def __init__(self, address: HostAddress, *, timeout: float = 30.0) -> None:
        self.address = address
        self._timeout = timeout

    def get(self, path: str, *, query: Mapping[str, Any] | None = None) -> Any:
        return self.request("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        return self.request("POST", path, body={} if body is None else body, timeout=timeout)

    def delete(self, path: str, *, query: Mapping[str, Any] | None = None) -> Any:
        return self.request("DELETE", path, query=query)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """One request and its answer as plain data.

        Raises:
            ToolhostError: the class that the answer's error envelope names.
            NotRunningError: nothing listens there.
            UnavailableError: the host did not answer in time, or with something that is not its API's.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{API}{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"Accept": "application/json"}
        if self.address.token is not None:
            headers["Authorization"] = f"Bearer {self.address.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body)
        limit, url = self._timeout if timeout is None else timeout, self.address.url
        connection = self._connection(limit)
        try:
            connection.request(method, target, body=content, headers=headers)
            response = connection.getresponse()
            status, raw = response.status, response.read()
        except ConnectionRefusedError as error:
            raise NotRunningError(f"nothing listens at {url}; start a host with: toolhost serve") from error
        except TimeoutError as error:
            raise UnavailableError(f"the host at {url} did not answer within {limit:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the host at {url} cannot be reached: {error!r}") from error
        finally:
            connection.close()
        return read_answer(status, raw, url=url)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.address.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)


def connect(home: Path | None, *, timeout: float = 30.0) -> HostClient:
    """A client of the running host. Raises as `Settings.from_env` and `find_host` do.

    Args:
        home: as given on the command line; None means what the environment says.
    """
    return HostClient(find_host(chosen_settings(home)), timeout=timeout)


def chosen_settings(home: Path | None) -> Settings:
    """The environment's settings. A home from the command line (not None) wins, over `TOOLHOST_URL` too."""
    settings = Settings.from_process()
    if home is None:
        return settings
    return replace(settings, home=home.expanduser().absolute(), url=None)


def read_answer(status: int, raw: bytes, *, url: str) -> Any:
    """The data of a successful answer; an error envelope is raised as the error it names."""
    try:
        data = json.loads(raw) if raw else None
    except ValueError as error:
        raise UnavailableError(f"{url} answered HTTP {status} with something that is no JSON") from error
    if status < 400:
        return data
    envelope = data.get("error") if isinstance(data, dict) else None
    if not isinstance(envelope, dict):
        raise UnavailableError(f"{url} answered HTTP {status} without saying why; is it a toolhost?")
    code, details = str(envelope.get("code", "toolhost")), envelope.get("details")
    failure = error_class(code)(str(envelope.get("message", f"HTTP {status}")))
    failure.details = dict(details) if isinstance(details, dict) else {}
    if type(failure) is ToolhostError:
        failure.details.setdefault("code", code)  # a code that this release does not know is still shown
    raise failure
