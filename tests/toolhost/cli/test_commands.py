"""Commands against a wire fake of the control API: what they ask, what they write, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.toolhost.cli.fake_host import OPERATOR_TOKEN, fake_host

from toolhost.cli.app import run
from toolhost.hosting.home import Home

SHELL = {"name": "bash", "state": "ready", "url": "http://127.0.0.1:7420/bash/mcp", "tools": ["run_command"]}
Capture = pytest.CaptureFixture[str]


def test_call_writes_the_text_and_sends_typed_arguments(tmp_path: Path, capsys: Capture) -> None:
    outcome = {"content": [{"type": "text", "text": "Linux\n[exit 0]"}]}
    with fake_host(tmp_path / "h", {("POST", "/servers/bash/call"): (200, outcome)}) as host:
        code = run(
            [
                "call",
                "bash",
                "run_command",
                "--arg",
                "command=uname",
                "--arg",
                "timeout:=3",
                "--home",
                str(host.home),
            ]
        )

    assert (code, capsys.readouterr()) == (0, ("Linux\n[exit 0]\n", ""))
    assert host.requests == [
        {
            "method": "POST",
            "target": "/servers/bash/call",
            "authorization": f"Bearer {OPERATOR_TOKEN}",
            "body": {"tool": "run_command", "arguments": {"command": "uname", "timeout": 3}},
        }
    ]


def test_call_ends_with_1_when_the_result_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    outcome = {"content": [{"type": "text", "text": "no such file"}], "is_error": True}
    with fake_host(tmp_path / "h", {("POST", "/servers/s/call"): (200, outcome)}) as host:
        code = run(["call", "s", "t", "--home", str(host.home)])

    assert (code, capsys.readouterr().out) == (1, "no such file\n")


def test_call_names_what_is_no_text_and_json_has_all_of_it(tmp_path: Path, capsys: Capture) -> None:
    outcome = {"content": [{"type": "image", "mime_type": "image/png", "data": "AAAA"}]}
    with fake_host(tmp_path / "h", {("POST", "/servers/s/call"): (200, outcome)}) as host:
        run(["call", "s", "t", "--home", str(host.home)])
        run(["call", "s", "t", "--json", "--home", str(host.home)])

    words, document = capsys.readouterr().out.splitlines()
    assert words == "[image image/png, 3 bytes; --json has it]"
    assert json.loads(document) == outcome


def test_an_error_of_the_host_is_one_line_with_its_code(tmp_path: Path, capsys: Capture) -> None:
    envelope = {"error": {"code": "conflict", "message": "server 'bash' already\nruns", "retryable": False}}
    with fake_host(tmp_path / "h", {("POST", "/servers"): (409, envelope)}) as host:
        code = run(["spawn", "bash", "--home", str(host.home)])

    assert (code, capsys.readouterr().err) == (1, "error: server 'bash' already runs [conflict]\n")


def test_a_code_of_a_newer_host_is_shown_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    envelope = {"error": {"code": "weather", "message": "it rains", "details": {}}}
    with fake_host(tmp_path / "h", {("GET", "/servers"): (400, envelope)}) as host:
        run(["list", "--home", str(host.home)])

    assert capsys.readouterr().err == "error: it rains [weather]\n"


def test_an_answer_that_is_no_json_is_told_apart_from_an_error_of_the_host(
    tmp_path: Path, capsys: Capture
) -> None:
    with fake_host(tmp_path / "h", {("GET", "/servers"): (502, b"<html>bad gateway")}) as host:
        code = run(["list", "--home", str(host.home)])

    assert code == 1
    assert capsys.readouterr().err.endswith(
        "answered HTTP 502 with something that is no JSON [unavailable]\n"
    )


def test_list_aligns_columns_and_cuts_nothing(tmp_path: Path, capsys: Capture) -> None:
    with fake_host(tmp_path / "h", {("GET", "/servers"): (200, [SHELL])}) as host:
        run(["list", "--home", str(host.home)])

    assert capsys.readouterr().out.splitlines() == [
        "NAME  STATE  CALLS  RESTARTS  TOOLS  URL",
        "bash  ready  0      0         1      http://127.0.0.1:7420/bash/mcp",
    ]


def test_spawn_of_a_shipped_kind_goes_over_http(tmp_path: Path, capsys: Capture) -> None:
    with fake_host(tmp_path / "h", {("POST", "/servers"): (200, SHELL)}) as host:
        code = run(
            ["spawn", "bash", "--arg", "max_output:=500", "--expose", "run_command", "--home", str(host.home)]
        )

    assert (code, capsys.readouterr().out) == (0, "bash is ready at http://127.0.0.1:7420/bash/mcp\n")
    assert host.requests[0]["body"] == {
        "name": "bash",
        "kind": "bash",
        "arguments": {"max_output": 500},
        "expose": ["run_command"],
    }


def test_stop_passes_its_grace_and_says_which_it_was(tmp_path: Path, capsys: Capture) -> None:
    answers = {
        ("DELETE", "/servers/bash?grace=1.5"): (200, {"name": "bash", "stopped": True}),
        ("DELETE", "/servers/ghost?grace=1.5"): (200, {"name": "ghost", "stopped": False}),
    }
    with fake_host(tmp_path / "h", answers) as host:
        run(["stop", "bash", "--grace", "1.5", "--home", str(host.home)])
        run(["stop", "ghost", "--grace", "1.5", "--home", str(host.home)])

    assert capsys.readouterr() == ("bash is stopped\n", "ghost was not running\n")


def test_drain_ends_with_1_while_calls_still_run(tmp_path: Path, capsys: Capture) -> None:
    with fake_host(tmp_path / "h", {("POST", "/servers/bash/drain"): (200, {"drained": False})}) as host:
        code = run(["drain", "bash", "--timeout", "1", "--home", str(host.home)])

    assert (code, capsys.readouterr().err) == (1, "bash still runs calls after 1 s\n")


def test_a_minted_token_stands_alone_on_stdout(tmp_path: Path, capsys: Capture) -> None:
    with fake_host(tmp_path / "h", {("POST", "/tokens"): (200, {"token": "th_x", "id": "1"})}) as host:
        run(["token", "mint", "ci", "--scope", "bash", "--ttl", "2h", "--home", str(host.home)])

    assert capsys.readouterr().out == "th_x\n"
    assert host.requests[0]["body"] == {"label": "ci", "scopes": ["bash"], "ttl": 7200.0}


def test_the_list_of_tokens_says_what_is_still_valid(tmp_path: Path, capsys: Capture) -> None:
    now = time.time()
    tokens = [
        {"id": "1", "label": "a", "scopes": ["*", "control"], "created_at": now - 7300, "expires_at": None},
        {
            "id": "2",
            "label": "b",
            "scopes": ["bash"],
            "created_at": now - 9,
            "expires_at": now + 86400 * 30 + 9,
        },
        {"id": "3", "label": "c", "scopes": ["bash"], "created_at": now - 9, "expires_at": now - 1},
        {
            "id": "4",
            "label": "d",
            "scopes": ["bash"],
            "created_at": now - 9,
            "expires_at": None,
            "revoked": True,
        },
    ]
    with fake_host(tmp_path / "h", {("GET", "/tokens"): (200, tokens)}) as host:
        run(["token", "list", "--home", str(host.home)])

    assert capsys.readouterr().out.splitlines() == [
        "ID  LABEL  SCOPES     AGE  VALID",
        "1   a      * control  2 h  until revoked",
        "2   b      bash       9 s  for 30 d",
        "3   c      bash       9 s  expired",
        "4   d      bash       9 s  revoked",
    ]


def test_config_for_claude_mints_a_token_for_these_servers_only(tmp_path: Path, capsys: Capture) -> None:
    answers = {("GET", "/servers"): (200, [SHELL]), ("POST", "/tokens"): (200, {"token": "th_x"})}
    with fake_host(tmp_path / "h", answers) as host:
        run(["config", "claude", "--home", str(host.home)])

    assert capsys.readouterr().out == (
        f"claude mcp add --transport http bash {host.url}/bash/mcp --header 'Authorization: Bearer th_x'\n"
    )
    assert host.requests[1]["body"]["scopes"] == ["bash"]


def test_config_with_a_variable_mints_nothing(tmp_path: Path, capsys: Capture) -> None:
    with fake_host(tmp_path / "h", {("GET", "/servers"): (200, [SHELL])}) as host:
        run(["config", "json", "--token-env", "MY_TOKEN", "--home", str(host.home)])

    entry = json.loads(capsys.readouterr().out)["mcpServers"]["bash"]
    assert entry["headers"] == {"Authorization": "Bearer ${MY_TOKEN}"}
    assert [request["method"] for request in host.requests] == ["GET"]


def test_without_a_host_the_way_to_start_one_is_named(tmp_path: Path, capsys: Capture) -> None:
    code = run(["list", "--home", str(tmp_path)])

    assert code == 1
    assert capsys.readouterr().err == (
        f"error: no host runs in {str(tmp_path)!r}: start one with `toolhost serve` [unavailable]\n"
    )


def test_a_host_that_was_killed_is_not_asked(tmp_path: Path, capsys: Capture) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    with fake_host(tmp_path / "h", {}) as host:
        files = Home(host.home)
        running = files.read_host_file()
        files.write_host_file(replace(running, pid=ended.pid))
        code = run(["list", "--home", str(host.home)])

    assert code == 1
    assert f"process {ended.pid} was killed" in capsys.readouterr().err
    assert host.requests == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["call", "bash"], "Missing argument 'TOOL'."),
        (["lisst"], "No such command 'lisst'. Did you mean 'list'?"),
        (["stop", "a", "--grace", "soon"], "Invalid value for '--grace'"),
        (
            ["call", "bash", "run_command", "--arg", "bad"],
            "argument 'bad' is neither name=text nor name:=json",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    line: list[str], message: str, capsys: Capture
) -> None:
    code = run(line)

    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {message}")


def test_code_of_the_users_is_not_sent_to_another_machine(tmp_path: Path) -> None:
    environment = {"TOOLHOST_URL": "http://127.0.0.1:9", "TOOLHOST_TOKEN": "t", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        [sys.executable, "-m", "toolhost.cli.app", "spawn", "greeter:Greeter"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'greeter:Greeter' is code")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("call s t --timeout 0", "0 seconds is no time to wait"),
        ("call s t --timeout -1", "not from 0"),
        ("drain s --timeout nan", "nan is not from 0"),
        ("stop s --grace inf", "inf is not from 0"),
        ("config codex --token-env A-B", "'A-B' is no name of an environment variable"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_words(line: str, words: str, capsys: Capture) -> None:
    code = run(line.split())

    assert (code, words in capsys.readouterr().err) == (2, True)
