"""Planted secrets and real tokens, looked for in everything that a host shows, runs and leaves behind."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support import raw
from tests.support.serving import Serving, command_lines, serving
from tests.support.waiting import eventually

from toolhost import ToolHost
from toolhost.tools.bash import BashTool

pytestmark = pytest.mark.ray

NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
# Where tokens belong. Everything else must hold none.
STORES = {"operator.token", "serve.token", "ray.token", "keys"}
FAMOUS = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "TOOLHOST_TOKEN"]


@dataclass
class Planted:
    """A host in whose environment secrets were planted, and every secret there is to find.

    Args:
        place: which every user may enter, and in which the home is; `work` is the commands' directory.
    """

    host: Serving
    place: Path
    work: Path
    canaries: dict[str, str]
    minted: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.host.home.root

    def tokens(self) -> dict[str, str]:
        found = {name: (self.home / name).read_text().strip() for name in STORES}
        found |= {f"minted {number}": token for number, token in enumerate(self.minted)}
        return {**found, "announced": self.host.token}

    def secrets(self) -> dict[str, str]:
        return {**self.canaries, **self.tokens()}

    def ask(self, server: str, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = raw.call(self.host.url, server, tool, arguments, token=self.host.token)
        result: dict[str, Any] = answer.json()["result"]
        return result

    def gathered(self, script: str, *, server: str = "bash") -> str:
        """What *script* writes to `$OUT` when a command of *server* runs it; too long for a tool's answer."""
        out = self.work / secrets.token_hex(4)
        out.touch()
        out.chmod(0o666)
        command = f"OUT={out}; ({script}) >$OUT 2>&1; true"
        if server == "bash":
            self.ask("bash", "run_command", command=command, wait_seconds=20)
        else:
            self.ask("jobs", "run", command=command, wait_seconds=20)
        return out.read_bytes().decode(errors="replace")


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    with tempfile.TemporaryDirectory(prefix="th-s-") as base:
        place = Path(base)
        place.chmod(0o755)
        work = place / "work"
        work.mkdir()
        work.chmod(0o777)
        canaries = {name: f"canary-{secrets.token_hex(12)}" for name in [*FAMOUS, "SOME_VARIABLE"]}
        with serving(place / "h", "--port", "0", work_dir=work, environment=canaries, umask=0) as host:
            yield Planted(host=host, place=place, work=work, canaries=canaries)


def hits(text: str, looked_for: dict[str, str]) -> list[str]:
    return [name for name, secret in looked_for.items() if secret in text]


LOOK = r"""
env; export -p; set; cat /proc/self/environ /proc/self/cmdline; cat /proc/$$/environ
pid=$$
while [ "$pid" -gt 1 ]; do
  echo; echo "ancestor $pid $(tr '\0' ' ' < /proc/$pid/cmdline)"
  cat /proc/$pid/environ
  pid=$(sed -n 's/^PPid:\t//p' /proc/$pid/status)
done
"""


@pytest.mark.parametrize("server", ["bash", "jobs"])
def test_a_command_finds_no_secret_in_its_environment_nor_in_that_of_its_ancestors(
    planted: Planted, server: str
) -> None:
    """SEC-R3, SEC-A3, KEY-1, CMD-R3, RAY-4, TREE-R6: what starts commands holds nothing, as its user may read it."""
    found = planted.gathered(LOOK, server=server)

    assert "TERM=dumb" in found
    assert found.count("\nancestor ") >= 3
    assert hits(found, planted.secrets()) == []
    assert re.findall(r"(?:RAY_|TOOLHOST_(?!JOB=))\w+", found.replace("\0", "\n")) == []


def test_nothing_of_the_host_is_passed_to_a_command(planted: Planted) -> None:
    """TREE-R7, PATH-5: three descriptors, none of them a socket or a file of the home."""
    found = planted.gathered("ls -l /proc/self/fd")
    links = re.findall(r" (\d+) -> (\S+)", found)

    assert {number for number, _ in links} <= {"0", "1", "2", "3"}  # one is the directory that ls reads
    assert [target for _, target in links if "socket" in target or str(planted.home) in target] == []


def test_no_argument_of_any_process_is_a_secret_while_the_host_works(planted: Planted) -> None:
    """KEY-1, KEY-8, SEC-R1, RAY-8: what everybody on the machine can see, sampled while all kinds of things run."""
    seen: set[str] = set()
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            seen.update(command_lines().values())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        planted.ask("bash", "run_command", command="sleep 0.2; ps axeww >/dev/null 2>&1; true")
        planted.ask("jobs", "run", command="sleep 0.2", wait_seconds=5)
        planted.minted.append(cli(planted, "token", "mint", "bash").stdout.strip())
        spawned = cli(planted, "spawn", "bash", "--name", "second")
        called = cli(planted, "call", "bash", "run_command", "--arg", "command=sleep 0.2")
        config = json.loads(cli(planted, "config", "json", "--name", "bash").stdout)
        planted.minted.append(
            config["mcpServers"]["bash"]["headers"]["Authorization"].removeprefix("Bearer ")
        )
    finally:
        done.set()
        sampler.join()

    assert (spawned.returncode, called.returncode) == (0, 0), (spawned, called)
    assert any("toolhost.ingress" in line for line in seen)
    assert [line for line in seen if hits(line, planted.secrets())] == []


def cli(planted: Planted, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "HOME": str(planted.place), "TOOLHOST_HOME": str(planted.home)}
    return subprocess.run(
        [sys.executable, "-m", "toolhost.cli.app", *words],
        env={**own, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look with another user's eyes")
def test_another_user_sees_neither_a_secret_nor_a_file_nor_a_socket_of_the_host(planted: Planted) -> None:
    """PATH-12, WEB-7, KEY-1, KEY-2, SEC-R4: whatever the umask; also when the other user is whom commands run as."""
    look = (
        f"cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; ls -laR {planted.home}; cat {planted.home}/*; id -un"
    )
    seen = subprocess.run(
        ["sh", "-c", look], **NOBODY, capture_output=True, timeout=60, check=False
    ).stdout.decode(errors="replace")
    connected = []
    for path in (planted.host.home.control_socket, planted.host.home.warden_socket):
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        tried = subprocess.run(
            ["python3", "-I", "-c", code], **NOBODY, capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )  # fmt: skip
        connected.append(tried.returncode == 0)

    assert seen.endswith("nobody\n")
    assert hits(seen, planted.secrets()) == []
    assert connected == [False, False]


def test_everything_a_host_keeps_is_private_to_its_user(planted: Planted) -> None:
    """PATH-12, WEB-7: it was started with umask 0."""
    planted.ask("jobs", "run", command="echo kept", wait_seconds=5)
    ours = [planted.home, *planted.home.rglob("*")]
    # Ray sets modes of its own; what is above its directory keeps others out.
    open_to_others = [
        str(path)
        for path in ours
        if "r" not in path.relative_to(planted.home).parts
        and path.lstat().st_mode & 0o077
        and not path.is_symlink()
    ]

    assert planted.home.stat().st_mode & 0o777 == 0o700
    assert open_to_others == []


def test_no_file_that_a_run_leaves_holds_a_secret(planted: Planted) -> None:
    """KEY-6, KEY-1, SEC-A3, SEC-R1, SEC-R3: logs, records, job output, databases and Ray's own files."""
    everywhere = {"command": "env; cat /proc/self/environ; echo out; echo err >&2"}
    planted.ask("bash", "run_command", **everywhere)
    planted.ask("jobs", "run", **everywhere, wait_seconds=5)
    planted.ask("bash", "no_such_function")
    for authorization in (f"Bearer {planted.host.token}x", f"Basic {planted.host.token}"):
        raw.request(planted.host.url, "GET", "/bash/mcp", headers={"authorization": authorization})
    raw.request(planted.host.url, "GET", f"/bash/mcp?token={planted.host.token}")
    planted.minted.append(cli(planted, "token", "mint", "jobs").stdout.strip())
    reading = ["token list --json", "status", "list", "logs bash", "doctor"]
    listed = [cli(planted, *words.split()).stdout for words in reading]
    looked_for = planted.secrets()
    files = [
        path
        for path in [*planted.home.rglob("*"), *planted.host.home.runtime_dir.rglob("*")]
        if path.is_file() and not path.is_symlink() and path.name not in STORES
    ]

    found = {str(path.relative_to(planted.place)): hits(contents(path), looked_for) for path in files}

    assert len(files) > 20
    assert any(path.name.startswith("tokens.db") for path in files)
    assert {name: secret for name, secret in found.items() if secret} == {}
    assert [text for text in listed if hits(text, looked_for)] == []


def contents(path: Path) -> str:
    with suppress(OSError):
        return path.read_bytes().decode("latin-1")
    return ""  # it is gone again


def test_an_error_never_repeats_what_was_secret_in_the_request(planted: Planted) -> None:
    """SEC-R1, SEC-R5, KEY-6: on the wire and on the terminal."""
    token = planted.host.token
    outside = {"TOOLHOST_URL": planted.host.url, "TOOLHOST_TOKEN": token + "x"}
    said = [
        cli(planted, "call", "bash", "run_command", "--arg", "command=true", **outside),
        cli(planted, "list", TOOLHOST_URL=f"http://user:{token}@127.0.0.1:1", TOOLHOST_TOKEN=token),
        cli(planted, "list", TOOLHOST_URL=f"http://127.0.0.1:1/?token={token}", TOOLHOST_TOKEN=token),
        cli(planted, "list", TOOLHOST_URL="http://127.0.0.1:1", TOOLHOST_TOKEN=token),
        cli(planted, "list", TOOLHOST_URL="http://127.0.0.1:1", TOOLHOST_TOKEN=f"{token}\n{token}"),
        cli(planted, "doctor"),
    ]

    assert [done.returncode for done in said[:5]] == [1] * 5, said
    assert [done for done in said if hits(done.stdout + done.stderr, planted.tokens())] == []


def test_what_a_shell_was_told_to_mask_is_masked_wherever_it_is_read(host: ToolHost) -> None:
    """KEY-6, SEC-A3: in an answer, a slice of a log, a list of jobs, and encoded by the reader."""
    secret = f"s3cret-{secrets.token_hex(10)}"
    host.spawn(BashTool.bind(env={"API_KEY": secret}, secrets=["API_KEY"]), name="masking")
    token = host.operator_token

    def ask(tool: str, **arguments: Any) -> str:
        return raw.text_of(raw.call(host.url, "masking", tool, arguments, token=token))

    try:
        said = [
            ask("run_command", command="echo key=$API_KEY; echo $API_KEY >&2; printf %s ${API_KEY:0:9}; sleep 0.1; "
                "printf %s ${API_KEY:9}"),
            ask("run_command", command="echo $API_KEY >/nonexistent/$API_KEY"),
            ask("run_output", job_id="job-1"),
            ask("run_output", job_id="job-1", grep="key"),
            ask("run_output", job_id="job-1", offset=6, max_bytes=9),
            ask("run_jobs"),
        ]  # fmt: skip
    finally:
        host.stop("masking", grace=0.5)

    assert "key=" in said[0]
    assert [text for text in said if secret in text or secret[7:15] in text] == []


def test_no_repr_shows_a_token(host: ToolHost) -> None:
    """SEC-R1, KEY-6"""
    handle = host.spawn(BashTool.bind(env={"API_KEY": "planted-value"}, secrets=["API_KEY"]), name="shown")
    try:
        shown = "".join(
            f"{thing!r}{thing!s}" for thing in (host, handle, handle.endpoint, host.status(), host.servers())
        )
        token = (
            handle.endpoint.headers.get("Authorization", "").removeprefix("Bearer ") or host.operator_token
        )
    finally:
        host.stop("shown", grace=0.5)

    assert token.startswith("th_")
    assert token not in shown
    assert host.operator_token not in shown
    assert "planted-value" not in shown


def test_every_port_is_on_loopback_and_answers_nobody_without_a_token(planted: Planted) -> None:
    """RAY-1, RAY-2, SEC-R2, WEB-3: Ray's own ports too; no page, no job by HTTP."""
    ports = listening(planted)
    ingress = int(planted.host.url.rsplit(":", 1)[1])

    assert ingress in ports
    assert set(ports.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    said = {}
    for port in ports:
        if port != ingress:
            for path in ("/", "/api/jobs/", "/api/version"):
                said[port, path] = answer_of(port, path)
    assert {where: text for where, text in said.items() if text.startswith(b"HTTP/1.1 2")} == {}


def answer_of(port: int, path: str) -> bytes:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n".encode())
        return sock.recv(4096)
    return b""


def listening(planted: Planted) -> dict[int, str]:
    """Port and address of every TCP socket that a process of the host listens on."""
    pids = {planted.host.process.pid, *planted.host.processes()}
    while more := {pid for pid, parent in parents().items() if parent in pids} - pids:
        pids |= more
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(entry))
    found = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                address, port = words[1].split(":")
                octets = b"".join(
                    int(address[at : at + 8], 16).to_bytes(4, sys.byteorder)
                    for at in range(0, len(address), 8)
                )
                found[int(port, 16)] = socket.inet_ntop(family, octets)
    return found


def parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def test_who_knows_the_clusters_address_but_not_its_token_gets_nothing(planted: Planted) -> None:
    """RAY-1: with the token the same program does, so it would notice an open door."""
    address = json.loads(cli(planted, "status", "--json").stdout)["ray_address"]
    code = (
        "from ray._raylet import GcsClient; "
        f"print('nodes', len(GcsClient(address={address!r}).get_all_node_info(timeout=10)))"
    )
    said = {}
    for what, token in (
        ("right", planted.tokens()["ray.token"]),
        ("wrong", secrets.token_hex(32)),
        ("none", None),
    ):
        auth = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        said[what] = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": os.environ["PATH"], "HOME": str(planted.place), **auth},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert said["right"].stdout == "nodes 1\n", said["right"]
    for what in ("wrong", "none"):
        assert (said[what].stdout, "AuthenticationError" in said[what].stderr) == ("", True), said[what]


def test_a_host_that_ended_leaves_no_socket_and_no_process_and_said_no_secret() -> None:
    """ZERO-1, WEB-7, KEY-6"""
    canary = f"canary-{secrets.token_hex(12)}"
    with tempfile.TemporaryDirectory(prefix="th-s-") as base:
        with serving(
            Path(base) / "h", "--port", "0", work_dir=Path(base), environment={"API_KEY": canary}
        ) as host:
            before = host.processes()
            raw.call(host.url, "bash", "run_command", {"command": "true"}, token=host.token)
            host.process.send_signal(signal.SIGTERM)
            out, err = host.process.communicate(timeout=30)
        eventually(lambda: not host.processes(), what="the end of every process")

        assert before
        assert not host.home.runtime_dir.exists()
        assert hits(out + err, {"token": host.token, "canary": canary}) == []
