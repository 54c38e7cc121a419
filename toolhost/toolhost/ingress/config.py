"""What an ingress is started with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds, each with a refusal of its own.

    Args:
        body: bytes of a request body (413).
        buffered: bytes of all bodies held at once (503).
        body_seconds: until a body must be complete (408).
        depth: nested arrays and objects in a body (400).
        headers: fields of one request (431).
        requests: of one principal at once, streams not counted (429).
        streams: open listen and GET streams of one principal (429).
        sessions: legacy sessions of one principal (503).
        all_sessions: legacy sessions of one server (503).
        session_idle: seconds without a request after which a legacy session ends.
    """

    body: int = 16 << 20
    buffered: int = 256 << 20
    body_seconds: float = 60.0
    depth: int = 64
    headers: int = 100
    requests: int = 256
    streams: int = 256
    sessions: int = 256
    all_sessions: int = 4096
    session_idle: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressConfig:
    """Args:
    keys: seal request state, the first one seals and all of them open; at least 32 bytes each.
    allowed_hosts: names that may stand in `Host` and `Origin`, `name` for any port or `name:port`.
    heartbeat: seconds between progress messages of a silent call that has a token.
    orphan_grace: seconds a legacy client may be away before its call is cancelled.
    controller_patience: seconds without a controller after which the ingress gives up.
    """

    keys: tuple[bytes, ...] = field(repr=False)
    allowed_hosts: tuple[str, ...] = ()
    heartbeat: float = 15.0
    orphan_grace: float = 30.0
    controller_patience: float = 10.0
    limits: Limits = Limits()
