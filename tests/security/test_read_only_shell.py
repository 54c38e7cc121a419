"""A read-only shell changes nothing on the host, however a command spells its write."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import raw
from tests.support.serving import serving

from toolhost import ToolHost
from toolhost.tools.bash import BashTool
from toolhost_sdk.errors import UsageError

pytestmark = pytest.mark.ray

NOBODY = 65534
WRITES = {
    "redirection": "echo x > new",
    "append": "echo x >> kept",
    "truncation": ": > kept",
    "clobber": "set +o noclobber; echo x >| kept",
    "descriptor": "exec 7<> kept; echo x >&7",
    "heredoc": "cat > new <<'EOF'\nx\nEOF",
    "tee": "echo x | tee new kept",
    "touch": "touch kept",
    "touch of a new one": "touch new",
    "mkdir": "mkdir new",
    "rm": "rm -f kept",
    "rm of all": "rm -rf ./* .[a-z]*",
    "mv": "mv -f kept new",
    "mv away": "mv -f kept /tmp/",
    "cp": "cp -f /etc/hostname kept",
    "ln": "ln kept new",
    "ln -s": "ln -s kept new",
    "dd": "dd if=/dev/zero of=kept bs=1 count=9 conv=notrunc",
    "truncate": "truncate -s 0 kept",
    "fallocate": "fallocate -l 9 new",
    "install": "install -m 755 /bin/true new",
    "sed -i": "sed -i s/original/x/ kept",
    "perl -i": "perl -pi -e s/original/x/ kept",
    "chmod": "chmod 777 kept",
    "chown": "chown 1:1 kept",
    "setfattr": "setfattr -n user.x -v 1 kept",
    "mkfifo": "mkfifo new",
    "mknod": "mknod new c 1 3",
    "tar": "tar cf new kept",
    "git": "git init -q new",
    "python": """python3 -c 'open("kept", "w").write("x")'""",
    "python os": """python3 -c 'import os; os.write(os.open("kept", os.O_RDWR), b"x")'""",
    "python mmap": """python3 -c 'import mmap; f = open("kept", "r+b"); mmap.mmap(f.fileno(), 0)[0] = 120'""",
    "python rename": """python3 -c 'import os; os.replace("kept", "new")'""",
    "python utime": """python3 -c 'import os; os.utime("kept", (1, 1))'""",
    "unix socket": """python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("new")'""",
    "by its full path": 'echo x > "$DIR/kept"',
    "through /proc/self/root": 'echo x > "/proc/self/root$DIR/kept"; touch "/proc/self/root$DIR/new"',
    "through /proc/self/cwd": "echo x > /proc/self/cwd/kept; touch /proc/self/cwd/new",
    "through a descriptor": "exec 8< kept; echo x > /proc/self/fd/8",
    "through every root": 'for root in /proc/[0-9]*/root; do echo x > "$root$DIR/kept"; done',
    "through every directory": 'for cwd in /proc/[0-9]*/cwd; do echo x > "$cwd/kept"; touch "$cwd/new"; done',
    "through /dev/fd": "exec 9< kept; echo x > /dev/fd/9",
    "in the background": "(sleep 0.05; echo x > kept) & wait",
    "left behind": "setsid sh -c 'sleep 0.1; echo x > kept; touch new' & sleep 0.3",
    "nohup": "nohup sh -c 'echo x > kept' >/dev/null 2>&1 & wait",
    "an EXIT trap": "trap 'echo x > kept' EXIT",
    "exec": "exec sh -c 'echo x > kept; touch new'",
    "remount": 'mount -o remount,rw /; mount -o remount,rw "$DIR"; echo x > kept',
    "remount bind": 'mount -o remount,bind,rw /; mount --bind "$DIR" /tmp; echo x > /tmp/kept; echo x > kept',
    "umount": 'umount -l "$DIR"; umount -l /tmp; echo x > "$DIR/kept"',
    "bind of a magic link": "mkdir -p /tmp/m; mount --bind /proc/1/root /tmp/m; echo x > /tmp/m$DIR/kept",
    "unshare": 'unshare -Urm sh -c \'mount -o remount,bind,rw "$DIR"; mount -o remount,rw /; echo x > "$DIR/kept"\'',
    "unshare mount": 'unshare -m sh -c \'mount -o remount,bind,rw "$DIR"; echo x > "$DIR/kept"\'',
    "nsenter": 'nsenter -t 1 -m sh -c \'echo x > "$DIR/kept"\'; nsenter -t $PPID -m touch "$DIR/new"',
    "chroot": "chroot /proc/1/root sh -c 'echo x > \"$DIR/kept\"'",
    "another user": "su nobody -s /bin/sh -c 'echo x > \"$DIR/kept\"'; sudo -n touch new",
    "ptrace": """gdb -q -batch -p 1 -ex 'call (int)creat("/x", 0)' || strace -p 1 true""",
    "state of the shell": "cd /; DIR=/elsewhere; set -C; ulimit -f 0",
    "at the end": "echo x > kept; touch new",
}


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A directory that every user may write, neither below /tmp nor private to this one."""
    base = tempfile.mkdtemp(prefix="th-ro-", dir="/var/lib" if os.access("/var/lib", os.W_OK) else None)
    work = Path(base) / "work"
    work.mkdir()
    Path(base).chmod(0o755)
    work.chmod(0o777)
    (work / "kept").write_text("original\n")
    (work / "kept").chmod(0o666)
    (work / "kept").touch()
    yield work
    for path in work.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    work.rmdir()
    Path(base).rmdir()


def state(directory: Path) -> list[tuple[object, ...]]:
    """Every entry with what a write would change."""
    found: list[tuple[object, ...]] = []
    for path in [directory, *sorted(directory.rglob("*"))]:
        s = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append(
            (path.name, s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_mtime_ns, data)
        )
    return found


@pytest.fixture(scope="module")
def offered(host: ToolHost) -> None:
    """Skips where the node cannot show a read-only view. Where it can, it does so for every user."""
    host.spawn(BashTool.bind(read_only=True), name="ro-probe")
    said = shell(host, "ro-probe", "true")
    host.stop("ro-probe", grace=0.5)
    if "read_only is not possible" in said:
        pytest.skip("this node has no read-only view")


@contextmanager
def outsider(directory: Path, user: str | None) -> Iterator[None]:
    """A process of the same user, outside of any read-only view, whose root and directory commands may find."""
    switched = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if user else {}
    with subprocess.Popen(["sleep", "100"], cwd=directory, **switched) as process:  # type: ignore[call-overload]  # options in a dict
        try:
            yield
        finally:
            process.kill()


def shell(host: ToolHost, name: str, command: str) -> str:
    arguments = {"command": command, "wait_seconds": 20}
    return raw.text_of(raw.call(host.url, name, "run_command", arguments, token=host.operator_token))


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize("place", ["work", "tmp"])
def test_no_spelling_of_a_write_changes_anything(
    host: ToolHost, work: Path, tmp_path: Path, user: str | None, place: str
) -> None:
    """SEC-R6, SEC-A5, POL-5: the engine refuses; as the host's user and as an ordinary one, also below /tmp."""
    if user and os.geteuid() != 0:
        pytest.skip("only root may run commands as another user")
    directory = work if place == "work" else below_tmp(tmp_path)
    name = f"ro-{place}-{user or 'own'}"
    host.spawn(BashTool.bind(work_dir=str(directory), read_only=True, user=user), name=name)
    try:
        said = shell(host, name, "cat kept")
        before = state(directory)
        changed = {}
        with outsider(directory, user):
            for what, command in WRITES.items():
                shell(host, name, f"cd {shlex.quote(str(directory))}; export DIR=$PWD; {command}")
                if state(directory) != before:
                    changed[what] = state(directory)
                    before = state(directory)
        read = shell(host, name, f"cat {shlex.quote(str(directory))}/kept; echo x > /tmp/own && cat /tmp/own")
    finally:
        host.stop(name, grace=0.5)

    assert said.startswith("original\n"), said
    assert changed == {}
    assert read.startswith("original\nx\n"), read


def below_tmp(tmp_path: Path) -> Path:
    """A directory under a place where a read-only command has a fresh one of its own."""
    directory = tmp_path / "work"
    directory.mkdir()
    for parent in [directory, *tmp_path.parents][:4]:
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    directory.chmod(0o777)
    (directory / "kept").write_text("original\n")
    (directory / "kept").chmod(0o666)
    return directory


def test_the_same_writes_are_noticed_where_they_may_succeed(host: ToolHost, tmp_path: Path) -> None:
    """SEC-A5: so that the test above would notice one that gets through."""
    directory = below_tmp(tmp_path)
    noticed = []
    host.spawn(BashTool.bind(work_dir=str(directory), persistent=False), name="rw")
    try:
        for what in (
            "redirection",
            "append",
            "touch",
            "chmod",
            "ln",
            "through /proc/self/root",
            "left behind",
        ):
            before = state(directory)
            shell(host, "rw", f"export DIR=$PWD; {WRITES[what]}")
            noticed.append((what, state(directory) != before))
            (directory / "new").unlink(missing_ok=True)
    finally:
        host.stop("rw", grace=0.5)

    assert [what for what, seen in noticed if not seen] == []


@pytest.mark.usefixtures("offered")
def test_no_argument_of_a_call_makes_a_read_only_shell_write(host: ToolHost, work: Path) -> None:
    """POL-1, TOOL-R9, DEF-R5: neither by an argument nor by metadata."""
    host.spawn(BashTool.bind(work_dir=str(work), read_only=True), name="ro-args")
    command = {"command": "touch smuggled"}
    try:
        unknown = [
            raw.call(host.url, "ro-args", "run_command", {**command, key: value}, token=host.operator_token)
            for key, value in [("read_only", False), ("user", "root"), ("env", {}), ("sandbox", None)]
        ]  # fmt: skip
        known = raw.call(host.url, "ro-args", "run_command", {**command, "cwd": str(work), "reset": True},
                         token=host.operator_token)  # fmt: skip
    finally:
        host.stop("ro-args", grace=0.5)

    assert [raw.text_of(answer).endswith("[usage]") for answer in unknown] == [True] * 4
    assert "Read-only file system" in raw.text_of(known)
    assert not (work / "smuggled").exists()


@pytest.mark.parametrize("user", ["no-such-user-here", "4294967295:0", "-1", "root; id", ""])
def test_a_command_that_cannot_run_as_its_user_does_not_run_at_all(
    host: ToolHost, tmp_path: Path, user: str
) -> None:
    """POL-2, SEC-R4, CMD-R4: never as the host's user instead."""
    canary = tmp_path / "ran"
    said = ""
    try:
        host.spawn(BashTool.bind(user=user), name="nobodys")
        said = shell(host, "nobodys", f"touch {canary}")
    except UsageError as error:
        said = str(error)
    finally:
        host.stop("nobodys", grace=0.5)

    assert not canary.exists(), said
    assert "user" in said


def test_a_read_only_shell_does_not_see_what_leads_to_one_that_writes(tmp_path: Path) -> None:
    """SEC-A5, SEC-R6: neither the sockets of the host nor its tokens, which its own user could use."""
    with (
        tempfile.TemporaryDirectory(dir=Path.home(), prefix="th-") as place,
        serving(Path(place) / "h", "--port", "0", work_dir=tmp_path) as host,
    ):
        home = host.home.root
        before = sorted(path.name for path in home.iterdir())
        spawn = [sys.executable, "-m", "toolhost.cli.app", "spawn", "bash", "--name", "ro"]
        subprocess.run(
            [*spawn, "--arg", "read_only:=true"],
            env={"PATH": os.environ["PATH"], "HOME": place, "TOOLHOST_HOME": str(home)},
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        token = host.home.operator_token_file.read_text()
        seen = {
            what: raw.text_of(raw.call(host.url, name, "run_command", {"command": f"ls -A {path}"}, token=token))
            for what, name, path in [
                ("home", "ro", home), ("sockets", "ro", host.home.runtime_dir), ("openly", "bash", home),
            ]
        }  # fmt: skip

    assert "operator.token" in before
    assert seen["home"].startswith("[exit 0, no output")
    assert "sock" not in seen["sockets"]
    assert "operator.token" in seen["openly"]
