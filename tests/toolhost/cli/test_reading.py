"""Pure parts: arguments, durations, settings, what clients are told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolhost.cli.arguments import parse_arguments, parse_duration
from toolhost.client_config import (
    ServerAccess,
    claude_commands,
    codex_toml,
    mcp_json,
    reachable_url,
    server_url,
)
from toolhost.settings import Settings, SettingsError
from toolhost_sdk.errors import UsageError


def test_arguments_are_text_or_json() -> None:
    given = ["command=a=b", "timeout:=1.5", "lines:=[1, 2]", "quiet:=true", "empty="]

    assert parse_arguments(given) == {
        "command": "a=b",
        "timeout": 1.5,
        "lines": [1, 2],
        "quiet": True,
        "empty": "",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["command"], "argument 'command' is neither name=text nor name:=json"),
        (["a=1", "a=2"], "argument 'a' is given twice"),
        (["a:=nope"], "argument 'a' is no valid JSON"),
    ],
)
def test_arguments_of_another_form_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(given)

    assert str(caught.value).startswith(message)


def test_durations_have_a_unit_or_are_seconds() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "15m", "12h", "30d", "1.5h")] == [
        90, 90, 900, 43200, 2592000, 5400,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "0", "-3", "3w", "nan", "1e3"])
def test_durations_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_settings_have_defaults_and_empty_variables_do_not_count() -> None:
    settings = Settings.from_env({"HOME": "/home/ada", "TOOLHOST_PORT": "", "TOOLHOST_URL": ""})

    assert settings == Settings(home=Path("/home/ada/.local/share/toolhost"), port=7420)


def test_settings_read_their_variables() -> None:
    settings = Settings.from_env(
        {
            "HOME": "/home/ada",
            "TOOLHOST_HOME": "~/tools",
            "TOOLHOST_PORT": "0",
            "TOOLHOST_URL": "http://127.0.0.1:9/",
            "TOOLHOST_TOKEN": "secret",
            "RAY_ADDRESS": "10.0.0.1:6379",
            "XDG_RUNTIME_DIR": "/run/user/1000",
        }
    )

    assert settings == Settings(
        home=Path("/home/ada/tools"),
        port=0,
        url="http://127.0.0.1:9",
        token="secret",
        ray_address="10.0.0.1:6379",
        runtime_dir=Path("/run/user/1000"),
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TOOLHOST_PORT", "http"),
        ("TOOLHOST_PORT", "65536"),
        ("TOOLHOST_PORT", "-1"),
        ("TOOLHOST_PORT", "٣"),
        ("TOOLHOST_HOME", "relative/path"),
        ("TOOLHOST_URL", "127.0.0.1:7420"),
        ("TOOLHOST_URL", "ftp://host:21"),
        ("TOOLHOST_URL", "http://user:pass@host:1"),
        ("TOOLHOST_URL", "http://host:99999"),
        ("TOOLHOST_TOKEN", "two words"),
        ("TOOLHOST_TOKEN", "line\nbreak"),
    ],
)
def test_settings_out_of_range_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"HOME": "/h", variable: value})

    assert caught.value.details == {"variable": variable}
    assert variable in str(caught.value)


def test_a_token_is_in_no_repr_and_in_no_error_message() -> None:
    """SEC-R1"""
    settings = Settings.from_env({"HOME": "/h", "TOOLHOST_TOKEN": "th_secret"})
    access = ServerAccess(name="bash", url="http://h/bash/mcp", token="th_secret")

    assert "th_secret" not in repr(settings) + repr(access)
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"HOME": "/h", "TOOLHOST_TOKEN": "th secret"})
    assert "secret" not in str(caught.value)


def test_claude_gets_a_header_that_a_shell_passes_on_unchanged() -> None:
    literal = ServerAccess(name="bash", url=server_url("http://127.0.0.1:1/", "bash"), token="th_a")
    variable = ServerAccess(name="jobs", url="http://127.0.0.1:1/jobs/mcp", token_env="TOK")

    assert claude_commands([literal, variable]) == [
        "claude mcp add --transport http bash http://127.0.0.1:1/bash/mcp --header 'Authorization: Bearer th_a'",
        'claude mcp add --transport http jobs http://127.0.0.1:1/jobs/mcp --header "Authorization: Bearer ${TOK}"',
    ]


@pytest.mark.parametrize(
    ("served", "said"),
    [
        ("http://0.0.0.0:7420", "http://127.0.0.1:7420"),
        ("http://[::]:7420", "http://[::1]:7420"),
        ("http://127.0.0.1:7420", "http://127.0.0.1:7420"),
        ("https://tools.example", "https://tools.example"),
    ],
)
def test_an_address_that_means_every_one_is_said_as_loopback(served: str, said: str) -> None:
    assert reachable_url(served) == said


def test_codex_gets_a_table_per_server_and_reads_the_token_from_a_variable() -> None:
    access = ServerAccess(name="bash", url="http://127.0.0.1:1/bash/mcp", token_env="TOK")

    assert codex_toml([access]) == (
        "[mcp_servers.bash]\n"
        'url = "http://127.0.0.1:1/bash/mcp"\n'
        'bearer_token_env_var = "TOK"\n'
        "tool_timeout_sec = 900\n"
    )
    with pytest.raises(UsageError):
        codex_toml([ServerAccess(name="bash", url="u", token="th_a")])


def test_other_clients_get_the_json_that_most_of_them_read() -> None:
    access = ServerAccess(name="bash", url="http://127.0.0.1:1/bash/mcp", token="th_a")

    assert mcp_json([access]) == {
        "mcpServers": {
            "bash": {
                "type": "http",
                "url": "http://127.0.0.1:1/bash/mcp",
                "headers": {"Authorization": "Bearer th_a"},
            }
        }
    }


def test_help_needs_neither_ray_nor_a_web_server() -> None:
    heavy = "['ray', 'uvicorn', 'fastapi', 'mcp', 'rich.console']"
    code = (
        "import sys; from toolhost.cli.app import run; run(['--help']); "
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )

    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stderr.strip() == "[]"
    assert time.monotonic() - started < 5 * max(1.0, os.getloadavg()[0])  # 0.15 s when the machine is idle
