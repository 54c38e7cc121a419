"""The environment of a command: built, never inherited.

Rules of this file: import-light (it runs between fork and exec); nothing here reads the environment of the process
it runs in.
"""

from __future__ import annotations

from collections.abc import Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NON_INTERACTIVE: dict[str, str] = {
    "TERM": "dumb",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GH_PAGER": "cat",
    "MANPAGER": "cat",
    "SYSTEMD_PAGER": "cat",
    "LESS": "-FRX",
    "EDITOR": "true",
    "VISUAL": "true",
    "GIT_EDITOR": "true",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_NO_INPUT": "1",
    "PYTHONUNBUFFERED": "1",
    "CI": "1",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}


def build(given: Mapping[str, str | None], *, label: str, user: str, home: str, shell: str) -> dict[str, str]:
    """Defaults, then what belongs to the user, then *given* (None removes). The job's label always stays.

    Args:
        label: `<namespace>/<job>`, by which sweeps know the process.
    """
    built = dict(NON_INTERACTIVE)
    built.update(PATH=PATH, HOME=home, USER=user, LOGNAME=user, SHELL=shell, TMPDIR="/tmp")
    for name, value in given.items():
        if value is None:
            built.pop(name, None)
        else:
            built[name] = value
    built["TOOLHOST_JOB"] = label
    return built
