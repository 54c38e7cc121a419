"""What a running function can say and ask: `ToolContext`, injected by annotation, never part of a schema."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Executor as ThreadExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, TypeVarTuple

from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import CancelledByCaller, UsageError
from toolhost_sdk.node.port import Executor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
QuestionKind = Literal["elicitation", "sampling", "roots"]


class CapabilityRequiredError(UsageError):
    """The client of this call cannot do what the function needs. `details["capability"]` names it."""

    code = "capability_required"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEnvironment:
    """What a server gets when it starts.

    Args:
        name: the name it is routed under.
        commands: runs commands on this node; None where a server is used without any (see `executor`).
        state_dir: a directory of its own (mode 0700) that outlives restarts under the same name.
        threads: where its blocking work runs, `max_concurrent` threads.
    """

    name: str
    commands: Executor | None
    state_dir: Path
    threads: ThreadExecutor

    @property
    def executor(self) -> Executor:
        """What runs commands on this node, see `toolhost_sdk.node.port`. Raises UsageError where there is none."""
        if self.commands is None:
            raise UsageError(
                f"server {self.name!r} needs an executor to run commands, and was started without one"
            )
        return self.commands

    async def work(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking *fn* in a worker thread of this server."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, fn, *args)


class ToolContext:
    """One running call, as its function sees it.

    The async methods belong to the loop of the tool host. A synchronous function passes what they return to
    `wait`, which blocks its worker thread until it is done.
    """

    def __init__(self, call: IncomingCall, server_name: str, loop: asyncio.AbstractEventLoop) -> None:
        payload: Mapping[str, Any] = call.payload or {}
        self.server_name = server_name
        self.call_id = call.header.call_id
        self.meta: Mapping[str, Any] = payload.get("meta") or {}
        self.capabilities: frozenset[str] = frozenset(payload.get("capabilities") or ())
        self.cancelled = False
        self._call = call
        self._loop = loop
        self._answers: dict[str, Any] = dict(payload.get("answers") or {})
        self._state: Any = payload.get("state")

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Tell how far the call is. Values should grow."""
        await self._call.emit("progress", {"progress": progress, "total": total, "message": message})

    async def log(self, level: str, data: Any, logger: str | None = None) -> None:
        """A log message for clients that asked for some; *level* as in RFC 5424 (`info`, `warning`, ...)."""
        await self._call.emit("log", {"level": level, "data": data, "logger": logger})

    async def changed(self, what: Literal["tools", "prompts", "resources"], uri: str | None = None) -> None:
        """Announce that this server's list of *what* changed, or with *uri* that one resource did."""
        await self._call.emit("changed", {"what": what, "uri": uri})

    async def detach(self) -> None:
        """Let a client that can resume its stream drop the connection for now."""
        await self._call.emit("detach", None)

    async def accepted(self) -> None:
        """Promise that no more questions will come."""
        await self._call.emit("accepted", None)

    async def handle(self, job: str) -> None:
        """Say that the call goes on as *job*."""
        await self._call.emit("handle", {"job": job})

    async def ask(self, questions: Mapping[str, tuple[QuestionKind, dict[str, Any]]]) -> dict[str, Any]:
        """Ask the client several things at once; keys name the questions within this call.

        With revision 2026-07-28 the function is ended here and run again from its start with the answers, so
        what stands before a question must be harmless to repeat (`remember` carries data over).

        Raises:
            CapabilityRequiredError: the client did not declare the kind.
        """
        for kind, _ in questions.values():
            self.require(kind)
        while missing := {key: q for key, q in questions.items() if key not in self._answers}:
            wire = {key: {"kind": kind, "params": params} for key, (kind, params) in missing.items()}
            await self._call.emit("ask", {"questions": wire, "state": self._state})
            message = await self._call.receive()
            self._answers.update(message.get("answers") or {})
        return {key: self._answers[key] for key in questions}

    async def elicit(self, key: str, message: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Ask the user for values of a flat object schema. Returns `{"action": "accept" | "decline" | "cancel",
        "content": {...}}`."""
        params = {"message": message, "requestedSchema": schema}
        answer: dict[str, Any] = (await self.ask({key: ("elicitation", params)}))[key]
        return answer

    async def sample(self, key: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask the client's model. Params and answer as in MCP's `sampling/createMessage`."""
        answer: dict[str, Any] = (await self.ask({key: ("sampling", params)}))[key]
        return answer

    async def roots(self, key: str = "roots") -> dict[str, Any]:
        """Ask for the client's roots: `{"roots": [{"uri", "name"}]}`."""
        answer: dict[str, Any] = (await self.ask({key: ("roots", {})}))[key]
        return answer

    def require(self, kind: str) -> None:
        """Raise `CapabilityRequiredError` unless the client declared *kind*."""
        if kind not in self.capabilities:
            raise CapabilityRequiredError(
                f"this function needs a client with the capability {kind!r}", capability=kind
            )

    def remember(self, state: Any) -> None:
        """Keep plain data for the next round of questions. It travels sealed through the client."""
        self._state = state

    def recall(self) -> Any:
        """What `remember` kept in an earlier round, or None."""
        return self._state

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one of the async methods from a synchronous function's worker thread."""
        if self.cancelled:
            work.close()
            raise CancelledByCaller(f"call {self.call_id!r} was cancelled")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except FutureCancelledError:
            raise CancelledByCaller(f"call {self.call_id!r} was cancelled") from None
