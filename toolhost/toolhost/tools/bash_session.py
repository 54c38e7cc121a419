"""A shell that remembers without a terminal: snapshots in, scripts in, snapshots out.

A fresh bash reads the last snapshot and the script from its stdin (so neither is an argument, and no file must be
readable to another user), and at its end writes what it holds to descriptor 3. Rules of this file: no process is
started here; what a shell wrote is input, not truth: only well-formed statements get into a snapshot.

Descriptor 3 is closed while the user's script runs: bash keeps the original beyond 10 with close-on-exec set and
puts it back for the EXIT trap, so no command of the script ever inherits it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

SNAPSHOT_LIMIT = 1 << 20
_FILE = "session.json"

# `read -N` is the one builtin that reads a pipe in large pieces; in the C locale it counts bytes.
_READ = 'IFS= LC_ALL=C read -r -N "$1" __toolhost_state; IFS= LC_ALL=C read -r -N "$2" __toolhost_script; '
_NAMES = " ".join(f'"${{!{letter}@}}"' for letter in "_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_SAVE = (
    "__toolhost_code=$? __toolhost_options=$SHELLOPTS; set +euxv; trap - DEBUG ERR RETURN; "
    r"""[ -n "$__toolhost_saved" ] || { __toolhost_saved=1; """
    r"""\builtin printf 'options\0%s\0cwd\0%s\0' "$__toolhost_options" "$PWD"; """
    r"""\builtin printf 'umask\0'; \builtin umask -p; """
    r"""\builtin printf '\0aliases\0'; \builtin alias -p; """
    r"""\builtin printf '\0functions\0'; \builtin declare -f; \builtin declare -Fx; """
    r"""\builtin printf '\0shopt\0'; \builtin shopt -p; \builtin printf '\0'; """
    rf"""for __toolhost_name in {_NAMES}; do """
    r"""\builtin printf 'variable\0'; \builtin declare -p "$__toolhost_name"; \builtin printf '\0'; done; """
    r"""\builtin printf 'end\0\0'; } >&3"""
)
_RUN_SAVE = r"""{ \builtin eval "$__toolhost_save"; } 2>/dev/null"""
_PERSISTENT = (
    _READ
    + "exec </dev/null; "
    + r"""{ printf 'start\0'; [ -z "$3" ] || builtin cd -- "$3" 2>/dev/null || printf lost; printf '\0'; } >&3; """
    + f"set --; __toolhost_save={shlex.quote(_SAVE)}; "
    + f"trap {shlex.quote(_RUN_SAVE)} EXIT; "
    # The state may define functions named like builtins, hence the long spellings.
    + r"""eval "$__toolhost_state" >/dev/null 2>&1; \builtin unset __toolhost_state; """
    + rf"""\builtin eval "$__toolhost_script" 3>&-; {_RUN_SAVE}; \builtin exit "$__toolhost_code" """
)
_INDEPENDENT = _READ + 'exec </dev/null; set --; unset __toolhost_state; eval "$__toolhost_script"'
_TRACING = frozenset({"xtrace", "verbose"})  # set on the script's own first line, not to show our lines

_STATEMENT = re.compile(
    r"""declare\ -(?P<flags>[-a-zA-Z]+)\ (?P<name>[A-Za-z_]\w*)(?P<value>=.*)?\n?\Z""", re.DOTALL | re.VERBOSE
)
_OWN = re.compile(
    r"(BASH(_(?!ENV\b)\w+|PID|OPTS)?|COMP_\w+|DIRSTACK|EPOCH\w+|EUID|FUNCNAME|GROUPS|HIST\w+|HOST(NAME|TYPE)|LINENO|"
    r"MACHTYPE|OPTIND|OSTYPE|PIPESTATUS|PPID|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|TOOLHOST_JOB|UID|_|"
    r"__toolhost_\w+)\Z"
)
_ON_BY_DEFAULT = frozenset({"braceexpand", "hashall", "interactive-comments"})


def command_line(
    state: bytes, script: bytes, cwd: str | None, *, persistent: bool
) -> tuple[list[str | bytes], bytes]:
    """The argv and the stdin that run *script*; its size is bounded by memory alone."""
    program = _PERSISTENT if persistent else _INDEPENDENT
    sizes = [str(len(state)), str(len(script))]
    return ["bash", "--noprofile", "--norc", "-c", program, "bash", *sizes, cwd or ""], state + script


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a session carries on: a directory, and statements that make a fresh shell like the last one.

    Args:
        prefix: options set on the script's own first line (`set -x; `).
    """

    cwd: str | None = None
    statements: str = field(default="", repr=False)
    prefix: str = field(default="", repr=False)

    def bytes_of(self) -> bytes:
        return os.fsencode(self.statements)

    def script(self, text: bytes) -> bytes:
        return os.fsencode(self.prefix) + text

    def write(self, directory: Path) -> None:
        """Replace the stored snapshot atomically; only its owner can read it."""
        target = directory / _FILE
        temporary = directory / f"{_FILE}.new"
        plain = {"cwd": self.cwd, "statements": self.statements, "prefix": self.prefix}
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump(plain, file)  # bytes that are no UTF-8 travel as escaped surrogates
        temporary.replace(target)

    @classmethod
    def stored(cls, directory: Path) -> Self:
        """What `write` kept; an empty session without it."""
        try:
            plain = json.loads((directory / _FILE).read_text("ascii"))
        except FileNotFoundError:
            return cls()
        return cls(cwd=plain["cwd"], statements=plain["statements"], prefix=plain["prefix"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a shell said of itself. *snapshot* is None when it did not come to saying it."""

    cwd_lost: bool = False
    snapshot: Snapshot | None = None


def parse_report(data: bytes | None, environment: Mapping[str, str | None]) -> Report:
    """Read descriptor 3's bytes.

    Args:
        environment: what the shell was given; a variable that still has its value is not kept, so that a
            changed configuration takes effect and no secret of it lies in a snapshot.
    """
    fields = os.fsdecode(data or b"").split("\0")
    pairs = list(zip(fields[::2], fields[1::2], strict=False))
    lost = ("start", "lost") in pairs
    if ("end", "") not in pairs:
        return Report(cwd_lost=lost)
    singles = {key: value for key, value in pairs if key != "variable"}
    variables = _variables([value for key, value in pairs if key == "variable"], environment)
    on, off = _options(singles.get("options", ""))
    sections = [singles.get(key, "") for key in ("umask", "shopt", "functions", "aliases")]
    options = [
        *(f"set +o {name}" for name in off),
        *(f"set -o {name}" for name in on if name not in _TRACING),
    ]
    statements = "\n".join([*variables, *sections, *options, ""])
    prefix = "".join(f"set -o {name}; " for name in on if name in _TRACING)
    snapshot = Snapshot(cwd=singles.get("cwd"), statements=statements, prefix=prefix)
    return Report(cwd_lost=lost, snapshot=snapshot if len(statements) <= SNAPSHOT_LIMIT else None)


def _variables(values: Sequence[str], environment: Mapping[str, str | None]) -> list[str]:
    kept: list[str] = []
    seen: set[str] = set()
    for text in values:
        match = _STATEMENT.match(text)
        if match is None:
            continue
        name = match["name"]
        seen.add(name)
        same = "x" in match["flags"] and environment.get(name) is not None
        if "r" in match["flags"] or _OWN.match(name):
            continue
        if (
            same
            and match["value"] is not None
            and _unquoted(match["value"][1:].rstrip("\n")) == environment[name]
        ):
            continue
        kept.append(text.rstrip("\n"))
    gone = sorted(name for name, value in environment.items() if value is not None and name not in seen)
    return [f"unset {name}" for name in gone if re.fullmatch(r"[A-Za-z_]\w*", name)] + kept


def _unquoted(value: str) -> str | None:
    """The text of a double-quoted word of `declare -p`; None for any other spelling."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return None
    return re.sub(r'\\(["$`\\])', r"\1", value[1:-1])


def _options(enabled: str) -> tuple[list[str], list[str]]:
    """What differs from a fresh shell's options: those on, those off."""
    names = frozenset(enabled.split(":")) - {""}
    return sorted(names - _ON_BY_DEFAULT), sorted(_ON_BY_DEFAULT - names)
