"""The directory of a host."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from toolhost.hosting.home import Home, HostFile, make_private_dir, write_private
from toolhost.hosting.ingress_process import bind
from toolhost_sdk.errors import ConflictError, NoSpaceError, UnavailableError, UsageError


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """WEB-7"""
    home = Home(tmp_path / "home")
    before = os.umask(0)
    try:
        home.prepare()
        write_private(home.operator_token_file, b"secret")
    finally:
        os.umask(before)

    directories = [home.root, home.runtime_dir, home.specs_dir, home.logs_dir]
    assert [path.stat().st_mode & 0o777 for path in directories] == [0o700] * 4
    assert home.operator_token_file.stat().st_mode & 0o777 == 0o600


def test_a_deep_home_keeps_its_sockets_short_enough(tmp_path: Path) -> None:
    home = Home(tmp_path / ("d" * 120))

    assert len(os.fsencode(home.control_socket)) < 107


def test_two_homes_never_share_an_instance_or_a_socket(tmp_path: Path) -> None:
    """Two hosts on one machine must not meet."""
    one, two = Home(tmp_path / "a"), Home(tmp_path / "b")

    assert one.instance != two.instance
    assert one.control_socket != two.control_socket


def test_a_second_host_in_one_home_is_told_where_the_first_one_is(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    running = HostFile(
        url="http://127.0.0.1:1", pid=7, ingress_pid=8, instance="i", control_socket="s", started_at=0.0
    )
    with home.locked():
        home.write_host_file(running)
        with pytest.raises(ConflictError) as caught, home.locked():
            pass

    assert "http://127.0.0.1:1" in caught.value.message
    with home.locked():
        pass


def test_a_home_without_a_host_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="toolhost serve"):
        Home(tmp_path).read_host_file()


def test_a_directory_that_is_a_link_of_somebody_is_refused(tmp_path: Path) -> None:
    """PATH-8: names in shared directories can be planted."""
    (tmp_path / "target").mkdir()
    (tmp_path / "planted").symlink_to(tmp_path / "target")

    with pytest.raises(UsageError):
        make_private_dir(tmp_path / "planted")


def test_no_room_on_the_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """Bad input: no disk left. `/dev/full` refuses every byte."""
    target = tmp_path / "file"
    write_private(target, b"old")
    with pytest.raises(NoSpaceError) as caught:
        raise_no_space(target)

    assert repr(str(target)) in caught.value.message
    assert target.read_bytes() == b"old"


def raise_no_space(target: Path) -> None:
    from toolhost.hosting.home import translated

    try:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    except OSError as error:
        assert error.errno == errno.ENOSPC
        raise translated(error, target) from None


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ConflictError) as caught:
            bind("127.0.0.1", port)

    assert str(port) in caught.value.message
    assert "--port 0" in caught.value.message
