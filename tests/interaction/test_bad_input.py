"""Bad input: one clear error each, and nothing is lost by it, the server answers as before."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support import raw
from tests.support.clients import ERAS, call_text, connected
from tests.support.serving import Serving, serving

from toolhost import ToolHost
from toolhost.tools.bash import BashTool
from toolhost.tools.jobs import AsyncBashTool
from toolhost_sdk.errors import ConflictError

pytestmark = [pytest.mark.anyio, pytest.mark.ray]

TOOLHOST = [sys.executable, "-m", "toolhost.cli.app"]


@pytest.fixture(scope="module", autouse=True)
def servers(host: ToolHost) -> Iterator[None]:
    host.spawn(BashTool.bind(work_dir="/"), name="bad-bash")
    host.spawn(AsyncBashTool.bind(), name="bad-jobs")
    yield
    host.stop("bad-bash", grace=0.5)
    host.stop("bad-jobs", grace=0.5)


@pytest.fixture(scope="module")
def token(host: ToolHost) -> str:
    return host.mint_token(scopes=["bad-bash", "bad-jobs"])


@pytest.fixture
def unharmed(host: ToolHost, token: str) -> Iterator[None]:
    """Around a test: shell state and a running job are still there afterwards."""
    mark = secrets.token_hex(4)
    raw.call(host.url, "bad-bash", "run_command", {"command": f"mark={mark}"}, token=token)
    run = {"command": f"echo {mark}; sleep 60", "wait_seconds": 0}
    job = raw.call(host.url, "bad-jobs", "run", run, token=token).json()["result"]["structuredContent"]
    yield
    kept = raw.call(host.url, "bad-bash", "run_command", {"command": "echo $mark"}, token=token)
    known = {"job_id": job["job_id"]}
    running = raw.call(host.url, "bad-jobs", "run_status", {**known, "wait_seconds": 0}, token=token)
    raw.call(host.url, "bad-jobs", "run_cancel", known, token=token)

    assert raw.text_of(kept).startswith(f"{mark}\n")
    assert running.json()["result"]["structuredContent"]["state"] == "running"


CALLS = {
    "an unknown function": (
        "run_comand",
        {"command": "true"},
        "not_found",
        "server 'bad-bash' has no function 'run_comand': did you mean 'run_command'",
    ),
    "a wrong type": ("run_command", {"command": 7}, "usage", "argument 'command' of 'run_command': 7 is not"),
    "a list for text": ("run_command", {"command": ["ls"]}, "usage", "argument 'command' of 'run_command'"),
    "text for a number": (
        "run_command",
        {"command": "true", "timeout": "1"},
        "usage",
        "argument 'timeout' of 'run_command'",
    ),
    "true for a number": (
        "run_command",
        {"command": "true", "timeout": True},
        "usage",
        "argument 'timeout' of 'run_command'",
    ),
    "an unknown argument": (
        "run_command",
        {"command": "true", "sandbox": False},
        "usage",
        "'run_command' has no argument 'sandbox'; it takes 'command'",
    ),
    "a missing argument": ("run_command", {}, "usage", "'run_command' needs argument 'command'"),
    "a number below zero": ("run_command", {"command": "true", "timeout": -1}, "usage", "timeout=-1"),
    "an unknown job": ("run_output", {"job_id": "job-4711"}, "not_found", "'job-4711'"),
    "a job that is a path": ("run_output", {"job_id": "../job-1"}, "not_found", "'../job-1'"),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("era", ERAS)
async def test_a_wrong_call_is_one_error_that_names_what_is_wrong(
    host: ToolHost, token: str, era: str
) -> None:
    """EXEC-A6, EXEC-R6, TOOL-R9, POL-1: in both eras the same code and words, and the connection goes on."""
    async with connected(f"{host.url}/bad-bash/mcp", token, mode=era) as client:
        got = {what: await client.call_tool(tool, args) for what, (tool, args, *_) in CALLS.items()}
        after = await call_text(client, "run_command", {"command": "echo $((6*7))"})

    for what, (*_, code, words) in CALLS.items():
        result = got[what]
        text = "".join(block.text for block in result.content if block.type == "text")
        assert result.is_error, what
        assert (result.meta or {})["toolhost/error"]["code"] == code, what
        assert words in text, what
        assert len(text.splitlines()) == 1, what
        assert text.endswith(f"[{code}]"), what
    assert after.startswith("42\n")


def message(arguments: str = '{"command": "true"}') -> bytes:
    whole = json.dumps(raw.call_message("run_command", {"command": "true"})[0])
    return whole.replace('{"command": "true"}', arguments).encode()


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", -32700),
    "blanks": (b"  \r\n ", -32700),
    "no JSON": (b"command=true", -32700),
    "half of it": (message()[:-7], -32700),
    "two of it": (message() + message(), -32700),
    "invalid UTF-8": (message('{"command": "echo \xff\xfe"}').decode().encode("latin-1"), -32700),
    "UTF-16": (message().decode().encode("utf-16"), -32700),
    "overlong UTF-8": (message().replace(b"true", b"\xc0\xaf"), -32700),
    "a NUL byte": (message().replace(b"true", b"t\0ue"), -32700),
    "deep arrays": (message('{"command": ' + "[" * 100_000 + "]" * 100_000 + "}"), -32700),
    "deep objects that never end": (b'{"a":' * 100_000, -32700),
    "a batch": (b"[" + message() + b"]", -32600),
    "a list of nothing": (b"[]", -32600),
    "text": (b'"tools/call"', -32600),
    "null": (b"null", -32600),
    "another version": (message().replace(b'"2.0"', b'"1.0"'), -32600),
    "no method": (b'{"jsonrpc": "2.0", "id": 1}', -32600),
    "parameters in a list": (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": []}', -32600),
    "an object as id": (message().replace(b'"id": 1', b'"id": {}'), -32600),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("era", ERAS)
def test_a_body_that_is_no_message_is_refused_in_json_rpcs_words(
    host: ToolHost, token: str, era: str
) -> None:
    """MCP-9, PROTO-R4, NET-R4"""
    _, modern = raw.call_message("run_command", {})
    headers: Mapping[str, str] = modern if era != "legacy" else {}

    for what, (body, code) in BODIES.items():
        answer = raw.request(host.url, "POST", "/bad-bash/mcp", token=token, headers=headers, body=body)
        assert (answer.status, answer.code) == (400, code), what
        assert len(answer.body) < 500, what


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("argument", "number"),
    [
        *(("timeout", number) for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")),
        *(
            ("wait_seconds", number) for number in ("NaN", "-Infinity", "-1e999")
        ),  # above its cap it is the cap
        *(("max_output", number) for number in ("NaN", "Infinity", "1e999", "5000.5")),
    ],
)
def test_a_number_that_is_none_is_refused_and_names_its_argument(
    host: ToolHost, token: str, argument: str, number: str
) -> None:
    """EXEC-A6, TIME-R1"""
    _, headers = raw.call_message("run_command", {})
    body = message(f'{{"command": "true", "{argument}": {number}}}')

    answer = raw.request(host.url, "POST", "/bad-bash/mcp", token=token, headers=headers, body=body)

    if answer.status == 200:
        assert answer.json()["result"]["isError"] is True
        assert argument in raw.text_of(answer)
        assert raw.text_of(answer).endswith("[usage]")
    else:
        assert (answer.status, answer.code) == (400, -32700)


def test_of_two_equal_keys_the_one_that_is_authorised_is_the_one_that_runs(host: ToolHost) -> None:
    """MCP-2, SEC-A1: whichever is taken, a token for one function runs no other, and headers must agree with it."""
    narrow = host.mint_token(scopes=["bad-bash:run_jobs"])
    mark = f"/tmp/{secrets.token_hex(8)}"
    arguments = {"command": f"touch {mark}"}
    answers = []
    for named in ("run_jobs", "run_command"):
        for first, second in (("run_jobs", "run_command"), ("run_command", "run_jobs")):
            whole, headers = raw.call_message(named, arguments)
            body = json.dumps(whole).replace(f'"name": "{named}"', f'"name": "{first}", "name": "{second}"')
            answers.append(
                raw.request(
                    host.url, "POST", "/bad-bash/mcp", token=narrow, headers=headers, body=body.encode()
                )
            )

    assert not Path(mark).exists()
    assert not any(answer.status == 200 and not refused(answer) for answer in answers)


def refused(answer: raw.Raw) -> bool:
    document = answer.json()
    return "error" in document or document["result"].get("isError") is True


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["/bad-bash/mcp", "/api/v1/servers"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_20_mib_is_refused_with_the_limit(host: ToolHost, path: str, framing: str) -> None:
    """NET-R3, NET-A5"""
    size = 20 << 20
    fields = [
        ("host", urlsplit(host.url).netloc),
        ("authorization", f"Bearer {host.operator_token}"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ]

    def chunks() -> Iterable[bytes]:
        if framing == "length":
            yield raw.head("POST", path, [*fields, ("content-length", str(size))])
            for _ in range(size >> 16):
                yield b"x" * (1 << 16)
        else:
            yield raw.head("POST", path, [*fields, ("transfer-encoding", "chunked")])
            for _ in range(size >> 16):
                yield b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"

    answer = raw.parsed(raw.exchange(host.url, chunks()))

    assert (answer.status, answer.code) == (413, "limit_exceeded")
    assert answer.json()["error"]["message"] == "a request body has at most 16777216 bytes"


@pytest.mark.usefixtures("unharmed")
def test_headers_beyond_their_bounds_are_refused(host: ToolHost, token: str) -> None:
    """WEB-6: one large field, many fields, a long path, a line without an end."""
    many = {f"x-{n}": "1" for n in range(200)}
    ends = {
        "one large field": raw.request(host.url, "GET", "/healthz", headers={"x": "y" * 200_000}),
        "many fields": raw.request(host.url, "GET", "/healthz", token=token, headers=many),
        "a long path": raw.request(host.url, "GET", "/" + "p" * 200_000),
        "no end": raw.parsed(raw.exchange(host.url, b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 200_000)),
    }

    assert {what: answer.status for what, answer in ends.items()} == {
        "one large field": 400,
        "many fields": 431,
        "a long path": 400,
        "no end": 400,
    }


@pytest.mark.usefixtures("unharmed")
def test_a_name_that_is_taken_or_is_none_is_refused_on_every_way_in(host: ToolHost) -> None:
    """DEF-R3, DEF-A4: in Python, over the control API and on the command line; the first owner keeps it."""
    with pytest.raises(ConflictError, match="'bad-bash'"):
        host.spawn(BashTool.bind(), name="bad-bash")
    body = json.dumps({"name": "bad-bash", "kind": "bash"}).encode()
    taken = raw.request(host.url, "POST", "/api/v1/servers", token=host.operator_token, body=body)
    on_terminal = cli(host.home, "spawn", "bash", "--name", "bad-bash")
    names = ["", "a b", "x/y", "x.y", "-x", "x" * 65, "ü", "a\nb"]
    codes = {}
    for name in names:
        body = json.dumps({"name": name, "kind": "bash"}).encode()
        answer = raw.request(host.url, "POST", "/api/v1/servers", token=host.operator_token, body=body)
        codes[name] = (answer.status, answer.code)

    assert (taken.status, taken.code) == (409, "conflict")
    assert (on_terminal.returncode, on_terminal.stderr.count("\n")) == (1, 1), on_terminal
    assert "'bad-bash'" in on_terminal.stderr
    assert on_terminal.stderr.endswith("[conflict]\n")
    assert codes == dict.fromkeys(names, (400, "usage"))
    assert sorted(server.name for server in host.servers() if server.name in names) == []


@pytest.mark.usefixtures("unharmed")
def test_the_port_of_a_running_host_is_refused_and_that_host_goes_on(host: ToolHost, tmp_path: Path) -> None:
    """HOST-R1: exit code 1, one line with the port and the way out, nothing started."""
    port = urlsplit(host.url).port

    done = cli(tmp_path / "home", "serve", "--port", str(port))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is in use: stop what listens there, or choose another with --port "
        "(--port 0 lets the system choose) [conflict]\n"
    )


@pytest.mark.usefixtures("unharmed")
def test_without_ray_the_command_line_still_reaches_a_running_host(host: ToolHost, tmp_path: Path) -> None:
    """Only `serve` needs Ray; it says so in one line."""
    without = [sys.executable, "-c", f"import sys; sys.modules['ray'] = None; {RUN}"]

    listed = cli(host.home, "list", "--json", program=without)
    called = cli(host.home, "call", "bad-bash", "run_command", "--arg", "command=echo hi", program=without)
    served = cli(tmp_path / "home", "serve", "--port", "0", program=without)

    assert {"bad-bash", "bad-jobs"} <= {server["name"] for server in json.loads(listed.stdout)}
    assert called.stdout.startswith("hi\n"), called
    assert (served.returncode, served.stderr) == (
        1,
        "error: Ray is not installed, and tool servers run in it; run: make install [unavailable]\n",
    )


RUN = "from toolhost.cli.app import run; sys.exit(run(sys.argv[1:]))"


def cli(home: Path, *words: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "TOOLHOST_HOME": str(home)}
    return subprocess.run(
        [*(program or TOOLHOST), *words],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 24 MiB of this test's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    place.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", "size=24m,mode=700", "none", str(place)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False, timeout=20)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No byte is left on *disk*."""
    with open(disk / "filling", "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 4096)
    yield
    (disk / "filling").unlink()


def test_on_a_full_disk_everything_says_so_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    """EXEC-R6, LOG-R6, ZERO-3, SURV-R3: nothing is half done, no byte disappears unannounced."""
    with small_disk(tmp_path / "disk") as disk:
        home = disk / "home"
        with filled(disk):
            never = cli(home, "serve", "--port", "0")
        with serving(home, "--port", "0", work_dir=tmp_path) as host:
            ask(host, "bash", "run_command", command="kept=1")
            go = tmp_path / "go"
            command = f"until test -e {go}; do sleep 0.05; done; seq 1 20000"
            job = ask(host, "jobs", "run", command=command, wait_seconds=0)
            with filled(disk):
                full = {
                    "command": ask(host, "bash", "run_command", command="kept=2"),
                    "job": ask(host, "jobs", "run", command="true"),
                    "token": cli(home, "token", "mint", "bash"),
                    "spawn": cli(home, "spawn", "bash", "--name", "late"),
                    "list": cli(home, "list", "--json"),
                }
                go.touch()
                wait = {"job_id": job["structuredContent"]["job_id"], "wait_seconds": 20}
                ended = ask(host, "jobs", "run_status", **wait)["structuredContent"]
            again = {
                "command": ask(host, "bash", "run_command", command="echo $kept"),
                "job": ask(host, "jobs", "run", command="echo on"),
                "token": cli(home, "token", "mint", "bash"),
                "spawn": cli(home, "spawn", "bash", "--name", "late"),
            }

    assert (never.returncode, never.stderr.count("\n")) == (1, 1), never
    assert never.stderr.startswith("error: no room on the disk for ")
    assert never.stderr.endswith("[no_space]\n")
    for what in ("command", "job"):
        assert full[what]["isError"] is True
        assert full[what]["_meta"]["toolhost/error"]["code"] == "no_space"
    for what in ("token", "spawn"):
        assert (full[what].returncode, full[what].stderr[-11:]) == (1, "[no_space]\n"), full[what]
    assert [server["name"] for server in json.loads(full["list"].stdout)] == ["bash", "jobs"]
    assert (ended["state"], ended["result"]["exit_code"]) == ("succeeded", 0)
    assert "bytes of output were not kept (no_space)" in ended["hint"]
    assert again["command"]["content"][0]["text"].startswith("1\n")
    assert again["job"]["structuredContent"]["output"] == "on"
    assert again["token"].stdout.startswith("th_")
    assert again["spawn"].returncode == 0, again["spawn"]


def ask(host: Serving, server: str, tool: str, **arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = raw.call(host.url, server, tool, arguments, token=host.token).json()["result"]
    return result
