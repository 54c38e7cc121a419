"""The log on disk: appends reassemble exactly, whatever was cut, capped, lost or refused."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolhost_sdk.node import logstore
from toolhost_sdk.node.logstore import LogWriter, find_gaps, read_spans, stored_counts, stored_segments
from toolhost_sdk.node.port import Stream

Piece = tuple[Stream, bytes]
pieces = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=20000)), max_size=40
)


def reread(directory: Path, size: int, limit: int) -> list[tuple[int, Stream, bytes]]:
    """Everything that is kept, as (offset, stream, bytes) per span."""
    segments = stored_segments(directory)
    found = []
    offset = 0
    while offset < size:
        spans = read_spans(directory, segments, offset, limit)
        if spans is None:
            offset = min((part.base for part in segments if part.base > offset), default=size)
            continue
        for stream, data in spans:
            found.append((offset, stream, data))
            offset += len(data)
    return found


@given(pieces, st.integers(1, 70000))
@settings(max_examples=60, deadline=None)
def test_what_was_appended_is_read_back_in_order_with_its_stream(written: list[Piece], limit: int) -> None:
    """ZERO-3 LOG-R2 LOG-R4"""
    with tempfile.TemporaryDirectory() as place:
        log = LogWriter(Path(place), limit=64 << 20)
        for stream, data in written:
            log.append(stream, data)
        log.close()

        spans = reread(Path(place), log.size, limit)

        for name in ("stdout", "stderr"):
            assert b"".join(data for _, stream, data in spans if stream == name) == b"".join(
                data for stream, data in written if stream == name
            )
        assert b"".join(data for _, _, data in spans) == b"".join(data for _, data in written)
        assert log.gaps() == ()


@given(pieces, st.integers(1, 70000))
@settings(max_examples=60, deadline=None)
def test_over_its_limit_a_log_keeps_both_ends_and_offsets_never_shift(
    written: list[Piece], limit: int
) -> None:
    """LOG-R6 ZERO-3"""
    keep = 64 << 10
    whole = b"".join(data for _, data in written)
    with tempfile.TemporaryDirectory() as place:
        log = LogWriter(Path(place), limit=keep)
        for stream, data in written:
            log.append(stream, data)
        log.close()
        gaps = log.gaps()
        segments = stored_segments(Path(place))

        for offset, _, data in reread(Path(place), log.size, limit):
            assert whole[offset : offset + len(data)] == data
        kept = sum(part.length for part in segments)
        assert kept <= keep and kept + sum(gap.end - gap.start for gap in gaps) == log.size == len(whole)
        assert len(gaps) == (log.size > keep) or log.size > keep * 0.9
        assert all(gap.start == keep // 2 and gap.reason == "log_limit" for gap in gaps)
        assert find_gaps(segments, log.size, keep) == gaps


def test_the_raw_log_can_be_searched_and_its_files_are_private(tmp_path: Path) -> None:
    """LOG-R1"""
    log = LogWriter(tmp_path, limit=1 << 20)
    log.append("stdout", b"needle in ")
    log.append("stderr", b"a haystack\n")
    log.close()

    found = subprocess.run(
        ["grep", "-c", "needle in a haystack", "log"], cwd=tmp_path, capture_output=True, check=True
    )

    assert found.stdout == b"1\n"
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(tmp_path)} == {0o600}


def test_bytes_past_the_last_index_record_read_as_unknown(tmp_path: Path) -> None:
    """LOG-R2: a supervisor died between the bytes and their record."""
    log = LogWriter(tmp_path, limit=1 << 20)
    log.append("stdout", b"known")
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(b"?????")
    with (tmp_path / "index").open("ab") as file:
        file.write(b"torn")

    segments = stored_segments(tmp_path)

    assert read_spans(tmp_path, segments, 0, 100) == [("stdout", b"known"), ("unknown", b"?????")]
    assert stored_counts(tmp_path, segments) == {"stdout": 5, "stderr": 0, "tty": 0, "unknown": 5}


def test_a_flood_of_small_pieces_shares_index_records(tmp_path: Path) -> None:
    """LOG-R2"""
    log = LogWriter(tmp_path, limit=1 << 20)
    for _ in range(5000):
        log.append("stdout", b"x")
    log.close()

    assert (tmp_path / "index").stat().st_size < 5000 * logstore.RECORD.size / 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_gap_and_what_comes_after_it_is_kept(small_disk: Path) -> None:
    """LOG-R6 ZERO-3"""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (160 << 10))
    log = LogWriter(small_disk, limit=64 << 20)
    data = os.urandom(200 << 10)
    for at in range(0, len(data), 5000):
        log.append("stdout", data[at : at + 5000])
    full_at = log.gaps()[0]
    ballast.unlink()
    log.append("stderr", b"after")
    log.close()

    spans = reread(small_disk, log.size, 65536)

    assert log.no_space and log.size == len(data) + 5
    assert [(gap.start, gap.end, gap.reason) for gap in log.gaps()] == [
        (full_at.start, len(data), "no_space")
    ]
    assert b"".join(part for _, stream, part in spans if stream == "stdout") == data[: full_at.start]
    assert spans[-1] == (len(data), "stderr", b"after")
