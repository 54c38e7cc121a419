"""From fork to exec: what the leader's process does before it becomes the command.

A start that fails is waited like any other: the words go to the command's stderr, the kind to the init through a
pipe that exec closes, and the process exits 126 or 127, as a shell would.

Rules of this file: import-light; runs in a single-threaded child only; nothing here returns to the caller.
"""
# pathlib is not loaded in the zygote, hence:
# ruff: noqa: PTH112, PTH118, PTH123

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module under signal
import contextlib
import errno
import fcntl
import json
import os
import pwd
import resource
import signal
from dataclasses import dataclass
from typing import Any, NoReturn

from toolhost_sdk.node import cgroups, environment, readonly

MAX_ARGUMENT = 131_071  # MAX_ARG_STRLEN less its terminator
_WORDS = 320  # characters of a refusal: as JSON at most 12 bytes each, so that no write to the pipe is torn
_LAST_ID = 2**32 - 2  # the one after it is -1, which the kernel takes for "leave it as it is"
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR)


class StartFailed(Exception):
    def __init__(self, kind: str, message: str, code: int = 126) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str
    shell: str


def account(user: str | None) -> Account:
    """Who `user=` means: a name, `uid`, `uid:gid`, or this process's own user for None."""
    if user is None:
        return _by_uid(os.getuid(), None)
    first, _, group = user.partition(":")
    if group and not group.isdigit():
        raise StartFailed("unknown_user", f"group {group!r} of user {user!r} is not a number")
    if any(part.isdigit() and int(part) > _LAST_ID for part in (first, group)):
        raise StartFailed("unknown_user", f"user {user!r}: ids go from 0 to {_LAST_ID}")
    gid = int(group) if group else None
    if first.isdigit():
        return _by_uid(int(first), gid)
    try:
        entry = pwd.getpwnam(first)
    except (KeyError, ValueError):
        raise StartFailed("unknown_user", f"no user {first!r} on this node") from None
    return Account(
        name=first, uid=entry.pw_uid, gid=entry.pw_gid if gid is None else gid, home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
    )  # fmt: skip


def _by_uid(uid: int, gid: int | None) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(name=str(uid), uid=uid, gid=uid if gid is None else gid, home="/", shell="/bin/sh")
    return Account(
        name=entry.pw_name, uid=uid, gid=entry.pw_gid if gid is None else gid, home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
    )  # fmt: skip


def run(plan: dict[str, Any], fds: list[int], error_fd: int) -> NoReturn:
    """Become the command of *plan*, or exit 126 or 127 having said why.

    Args:
        fds: what becomes 0, 1, 2 and, when there are four, 3.
        error_fd: closed by a successful exec; otherwise gets one JSON object `{"error", "message"}`.
    """
    report = error_fd
    code = 126
    try:
        report = _arrange_descriptors(fds, error_fd)
        _become(plan)
    except StartFailed as error:
        code = error.code
        tell(report, error.kind, error.message)
    except OSError as error:
        tell(report, "other", f"could not start: {error.strerror} ({error.filename or 'no path'})")
    except BaseException as error:  # noqa: BLE001 - last frame of a forked child: nothing may unwind further
        tell(report, "other", f"could not start: {error!r}")
    finally:
        os._exit(code)


def tell(report: int, kind: str, message: str) -> None:
    """Say on stderr and to the warden why there is no command. The middle of a long message is left out."""
    if len(message) > _WORDS:
        message = f"{message[: _WORDS // 2]} ... {message[-_WORDS // 2 + 5 :]}"
    with contextlib.suppress(OSError):
        os.write(2, f"toolhost: {message}\n".encode("utf-8", "backslashreplace"))
    with contextlib.suppress(OSError):
        os.write(report, json.dumps({"error": kind, "message": message}).encode())


def _arrange_descriptors(fds: list[int], error_fd: int) -> int:
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32) for fd in [*fds, error_fd]]
    for target, fd in enumerate(high[:-1]):
        os.dup2(fd, target, inheritable=True)
    report = len(fds)
    os.dup2(high[-1], report, inheritable=False)
    os.closerange(report + 1, 1 << 20)
    return report


def warm() -> None:
    """Have the zygote load what looks up users, which each child would load anew. The files are read anew each time."""
    with contextlib.suppress(KeyError, OSError):
        os.getgrouplist(pwd.getpwuid(os.getuid()).pw_name, os.getgid())


def prepare() -> None:
    """What every leader needs and no plan changes: a session of its own, default signals, an umask."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            # The C function: the public one turns every number and handler into an enum, at ten times the cost.
            with contextlib.suppress(OSError, ValueError):
                _signal.signal(number, _signal.SIG_DFL)
    _signal.set_wakeup_fd(-1)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    os.setsid()
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rehearse() -> None:
    """Go the way of a start up to an exec that cannot be. A forked process copies each page it first writes to, and
    reference counts write to all of them: done while the leader waits, that costs the start nothing."""
    who = account(None)
    env = environment.build({}, label="", user=who.name, home=who.home, shell=who.shell)
    plan = json.loads(json.dumps({"argv": ["/nonexistent/toolhost"], "env": env}))
    with contextlib.suppress(StartFailed):
        _execute([os.fsencode(arg) for arg in plan["argv"]], plan["env"])


def _become(plan: dict[str, Any]) -> None:
    if plan["refuse"]:
        raise StartFailed(*plan["refuse"])
    for group in plan["cgroups"]:
        if not cgroups.write(f"{group}/cgroup.procs", "0"):
            raise StartFailed("isolation", f"could not enter the cgroup {group!r}")
    who = account(plan["user"])
    if who.uid != os.getuid() and os.geteuid() != 0:
        raise StartFailed(
            "other", f"running as user {plan['user']!r} needs a warden that runs as root; leave user= out"
        )
    cwd = plan["cwd"]
    if plan["read_only"]:
        try:
            readonly.enter(cwd, hidden=plan["hidden"], other_user=os.geteuid() == 0 and who.uid != 0)
        except OSError as error:
            raise StartFailed(
                "isolation", f"read_only is not possible on this node: {error.strerror} ({error.filename})"
            ) from None
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(plan["nofile"]))
    if plan["user"] is not None:
        _switch(who)
    if plan["read_only"]:
        readonly.no_new_privileges()
    try:
        os.chdir(cwd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartFailed("bad_cwd", f"working directory {cwd!r}: {reason}") from None
    env = environment.build(plan["env"], label=plan["label"], user=who.name, home=who.home, shell=who.shell)
    _execute([os.fsencode(arg) for arg in plan["argv"]], env)


def _switch(who: Account) -> None:
    if os.geteuid() != 0:
        return
    try:
        os.initgroups(who.name, who.gid)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        raise StartFailed("unknown_user", f"could not become user {who.name!r}: {error.strerror}") from None


def _candidates(program: bytes, path: str) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [os.path.join(os.fsencode(part) or b".", program) for part in path.split(":")]


def _execute(argv: list[bytes], env: dict[str, str]) -> NoReturn:
    wanted = argv[0]
    encoded = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    denied: bytes | None = None
    for candidate in _candidates(wanted, env.get("PATH", environment.PATH)) if wanted else []:
        try:
            os.execve(candidate, argv, encoded)
        except OSError as error:
            if error.errno in _NOT_HERE and not os.path.lexists(candidate):
                continue
            if error.errno == errno.EACCES:
                denied = denied or candidate
                continue
            raise _explain(error, candidate, argv, encoded) from None
    shown = os.fsdecode(wanted)
    if denied is not None:
        what = "is a directory" if os.path.isdir(denied) else "permission denied"
        raise StartFailed("not_executable", f"{os.fsdecode(denied)!r} is not executable: {what}")
    if " " in shown and len(argv) == 1:
        raise StartFailed(
            "not_found",
            f"no program {shown!r}: one argument is one word; pass {shown.split()!r} or use a shell",
            127,
        )
    raise StartFailed("not_found", f"no program {shown!r}" + ("" if "/" in shown else " in PATH"), 127)


def _explain(error: OSError, candidate: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> StartFailed:
    shown = os.fsdecode(candidate)
    if error.errno in _NOT_HERE:
        missing = _interpreter(candidate)
        if missing is None:
            return StartFailed("not_found", f"no program {shown!r}", 127)
        return StartFailed(
            "interpreter_not_found", f"{shown!r} needs the interpreter {missing!r}, which is missing", 127
        )
    if error.errno == errno.E2BIG:
        return too_long(argv, sum(len(key) + len(value) + 2 for key, value in env.items()))
    if error.errno == errno.ENOEXEC:
        return StartFailed(
            "bad_format", f"{shown!r} is no program this machine can run (wrong format or no #! line)"
        )
    return StartFailed("other", f"could not run {shown!r}: {error.strerror}")


def _interpreter(path: bytes) -> str | None:
    """What a file that exists but cannot be found is missing: the program of its `#!` line, or its loader."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return None
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        return os.fsdecode(words[0]) if words else ""
    return "of its program header (the dynamic loader)" if head.startswith(b"\x7fELF") else None


def too_long(argv: list[bytes], env_size: int = 0) -> StartFailed:
    """The words for arguments the kernel will not take: which, how long, what to do."""
    index = max(range(len(argv)), key=lambda position: len(argv[position]))
    total = sum(len(arg) + 1 for arg in argv)
    return StartFailed(
        "argument_too_long",
        f"argument {index} has {len(argv[index])} bytes (limit {MAX_ARGUMENT} each; all arguments {total} and "
        f"environment {env_size} bytes share a quarter of the stack limit); pass it by stdin or a file",
    )


def oversized(argv: list[bytes]) -> StartFailed | None:
    """The refusal for an argument no kernel takes, or None."""
    return too_long(argv) if any(len(arg) > MAX_ARGUMENT for arg in argv) else None
