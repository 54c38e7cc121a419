"""Views of output: pure functions, so a table of cases each, and properties over how bytes are chunked."""

from __future__ import annotations

import itertools
import json
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from toolhost.tools.rendering import (
    Line,
    LineFilter,
    Masker,
    OutputView,
    Reader,
    clip,
    ending,
    escaped_length,
    is_binary,
    kind,
    render,
    seconds,
    show,
    size,
    trailer,
)
from toolhost_sdk.errors import UsageError
from toolhost_sdk.node.port import JobRecord, Stream

READER = Reader(job="job-3")

LINES = [  # VIEW-R1: what a terminal would have left standing
    (b"plain\n", ["plain"]),
    (b"no line feed", ["no line feed"]),
    (b"a\n\n", ["a", ""]),
    (b"dos\r\nline\r\n", ["dos", "line"]),
    (b"10 %\r20 %\r100 %\n", ["100 %"]),
    (b"10 %\r100 %\r", ["100 %"]),
    (b"spin\r    \r\n", ["    "]),
    (b"old\r\x1b[Knew\n", ["new"]),
    (b"old\r\x1b[K\n", [""]),
    (b"old\x1b[2K\x1b[1Gnew\n", ["new"]),
    (b"abc\x1b[2Dx\n", ["ax"]),
    (b"N\bNA\bAM\bM\n", ["NAM"]),
    (b"_\bx\n", ["x"]),
    (b"|\b/\b-\b\n", ["-"]),
    (b"ab\b\b\b\b\bc\n", ["c"]),
    (b"\x1b[1;31mred\x1b[0m\n", ["red"]),
    (b"\x1b[38:2::1:2:3mcolour\x1b[m\n", ["colour"]),
    (b"\xc2\x9b31m8-bit\n", ["8-bit"]),
    (b"\x1b]0;title\x07text\n", ["text"]),
    (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["link"]),
    (b"\xc2\x9d0;title\xc2\x9ctext\n", ["text"]),
    (b"\x1bP1$r0m\x1b\\text\n", ["text"]),
    (b"\x1b(B\x1b7\x1bMtext\x1bc\n", ["text"]),
    (b"a\x1b[31m\x1b[0m\bb\n", ["b"]),
    (b"\x1b]hides\nnothing\n", ["\x1b]hides", "nothing"]),
    (b"\x1b[31", ["\x1b[31"]),
    (b"\x1b[\xc3\xa9m\n", ["\x1b[\xe9m"]),
    (b"bad \xff\xc3 utf\n", ["bad \ufffd\ufffd utf"]),
    ("grüße 🦀\n".encode(), ["grüße 🦀"]),
]


@pytest.mark.parametrize(("data", "expected"), LINES)
def test_a_line_is_what_a_terminal_would_have_left_standing(data: bytes, expected: list[str]) -> None:
    """VIEW-R1"""
    lines = LineFilter()

    assert [line.text for line in lines.feed(data) + lines.close()] == expected


terminal_bytes = st.lists(
    st.one_of(
        st.sampled_from([
            b"\r", b"\n", b"\r\n", b"\b", b"\x1b", b"\x1b[", b"\x1b[31m", b"\x1b]0;t\x07", b"\x1b]", b"\x1bP", b"\x07",
            b"\x1b\\", b"\xc2\x9b", b"K", b"\x1b[K", b"\xf0\x9f\xa6\x80", b"\xff", b"\xc3", b"\x00",
        ]),
        st.binary(max_size=6),
        st.text(max_size=6).map(str.encode),
    ),
    max_size=40,
).map(b"".join)  # fmt: skip


@given(data=terminal_bytes, cuts=st.lists(st.integers(0, 200), max_size=12))
@example(data=b"\x1b[3\x1b[31mred\xf0\x9f\xa6\x80\r\n", cuts=[1, 3, 4, 11, 13])
def test_chunking_never_changes_the_lines(data: bytes, cuts: list[int]) -> None:
    """VIEW-R1, LOG-R8: sequences and characters survive the borders of chunks."""
    whole, pieces = LineFilter(), LineFilter()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    expected = whole.feed(data) + whole.close()
    got = [line for start, end in itertools.pairwise(borders) for line in pieces.feed(data[start:end])]

    assert got + pieces.close() == expected


@given(spans=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), terminal_bytes), max_size=6))
def test_chunking_never_changes_the_view(spans: list[tuple[Stream, bytes]]) -> None:
    """VIEW-R1, LOG-R8: decoding is per stream, so a character split by the other stream's bytes stays whole."""
    by_byte = [(stream, data[i : i + 1]) for stream, data in spans for i in range(len(data))]

    assert render(by_byte, reader=READER) == render(spans, reader=READER)


def test_a_character_split_by_the_other_streams_bytes_stays_whole() -> None:
    """LOG-R8"""
    crab = "🦀".encode()

    view = render([("stdout", crab[:2]), ("stderr", b"warning\n"), ("stdout", crab[2:])], reader=READER)

    assert view.text == "warning\n🦀"


@given(data=terminal_bytes)
def test_nothing_a_terminal_or_an_eye_would_misread_is_left(data: bytes) -> None:
    """VIEW-R3"""
    view = render([("stdout", data)], reader=READER)

    hidden = {c for c in view.text if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}
    prefixed_numbers = {
        chr(c) for c in (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)
    }
    assert hidden - {"\n", "\t"} <= prefixed_numbers


def test_every_format_character_of_unicode_is_shown_as_an_escape() -> None:
    """VIEW-R3"""
    visible_signs = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    formats = {c for c in range(sys.maxunicode) if unicodedata.category(chr(c)) == "Cf"} - visible_signs

    assert [hex(c) for c in formats if show(chr(c)) == chr(c)] == []


def test_hidden_characters_are_named_by_their_code() -> None:
    """VIEW-R3"""
    assert show("a\x07b\u202ec\u200bd\U000e0041\tend") == snapshot("a\\x07b\\u202ec\\u200bd\\U000e0041\tend")


@given(cut=st.integers(0, 60), other=st.booleans())
def test_a_secret_is_masked_across_borders_of_chunks(cut: int, other: bool) -> None:
    """9.4: masking survives chunk borders, escapes inside, and bytes of the other stream between."""
    data = b"token=s3cr3t-v\x1b[0malue-xyz end and \x1b[1ms3cr3t-value-xyz\n"
    noise: list[tuple[Stream, bytes]] = [("stderr", b"noise\n")] if other else []
    spans: list[tuple[Stream, bytes]] = [("stdout", data[:cut]), *noise, ("stdout", data[cut:])]

    view = render(spans, reader=READER, masker=Masker(["s3cr3t-value-xyz"]))

    assert "token=[masked] end and [masked]" in view.text
    assert "s3cr3t" not in view.text


def test_each_line_of_a_secret_of_several_lines_is_masked() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n-----END KEY-----\n"

    view = render([("stdout", f"x\n{key}y\n".encode())], reader=READER, masker=Masker([key]))

    assert view.text == "x\n[masked]\n[masked]\n[masked]\ny"


def test_what_a_border_tears_out_of_a_secret_is_blotted() -> None:
    masker = Masker(["s3cr3t-value"])
    data = b"a s3cr3t-value s3cr3t-value b"

    assert masker.blot(data, [6, 29]) == b"a ************ s3cr3t-value b"
    assert masker.blot(data) == b"a ************ ************ b"


@given(cut=st.integers(0, 12), before=st.binary(max_size=5))
def test_the_beginning_of_a_secret_is_recognised(cut: int, before: bytes) -> None:
    secret = b"s3cr3t-value"

    held = Masker([secret.decode()]).unfinished(before + secret[:cut])

    assert held >= cut if cut < len(secret) else held < len(secret)


def test_a_secret_too_short_to_mask_is_refused_without_being_told() -> None:
    with pytest.raises(UsageError) as caught:
        Masker(["abc"])

    assert caught.value.message == snapshot(
        "a secret of 3 characters cannot be masked: the shortest that can has 4"
    )


def test_a_line_over_2000_characters_is_clipped_in_the_middle() -> None:
    """9.4"""
    text = clip(Line("a" * 1500 + "b" * 1500))

    assert len(text) <= 2000
    assert text.startswith("a" * 900) and text.endswith("b" * 900)
    assert "[... 1,048 characters omitted ...]" in text


def test_a_line_of_many_mebibytes_keeps_its_ends_in_bounded_memory() -> None:
    """BASH-R3"""
    view = OutputView(30_000, masker=Masker(), reader=READER)
    view.feed("stdout", b"START")
    for _ in range(48):
        view.feed("stdout", b"x" * 65536)
    view.feed("stdout", b"END\n")

    text = view.finish().text

    assert text.startswith("STARTx") and "xEND" in text
    assert "[... 3,143,784 characters omitted ...]" in text
    assert len(text) < 2200


def test_long_output_keeps_a_head_third_and_a_tail_of_two_thirds_on_line_borders() -> None:
    """BASH-R3, TOOL-R4"""
    data = b"".join(b"line %d\n" % number for number in range(20_000))

    text = render([("stdout", data)], reader=READER).text

    head, _, rest = text.partition("\n[... ")
    note, _, tail = rest.partition(" ...]\n")
    assert note == snapshot(
        '17,109 lines, 175 KiB omitted; run_output("job-3", offset=9860) reads it (also tail=, lines=, grep=)'
    )
    assert head.startswith("line 0\n") and tail.endswith("line 19999")
    assert 1.9 < len(tail) / len(head) < 2.1
    assert len(text) <= 30_000
    offset = int(note.partition("offset=")[2].partition(")")[0])
    assert data[offset:].startswith(b"line %d\n" % (head.count("\n") + 1))


def test_a_skipped_middle_is_counted_as_left_out() -> None:
    """TOOL-R4: of a log too large to read, the view still says what it lacks."""
    view = OutputView(2000, masker=Masker(), reader=READER)
    view.feed("stdout", b"head\n" * 400)
    view.skip(5 << 20, 1000)
    view.feed("stdout", b"tail\n" * 10)

    text = view.finish().text

    assert text.startswith("head\nhead\n") and text.endswith("tail\ntail")
    assert "1,294 lines, 5.0 MiB omitted" in text


nasty_line = st.text(alphabet=st.sampled_from('"\\a\t\x07é漢🦀\u202e'), max_size=4000)


@given(lines=st.lists(nasty_line, max_size=30), repeat=st.integers(1, 40), limit=st.integers(1000, 60_000))
def test_a_view_stays_within_its_limit_also_as_json(lines: list[str], repeat: int, limit: int) -> None:
    """BASH-R3, CLIENT-R4"""
    spans: list[tuple[Stream, bytes]] = [("stdout", "\n".join(lines * repeat).encode()), ("stderr", b"\x00")]

    view = render(spans, limit=limit, reader=READER)

    assert len(view.text) <= limit
    assert len(json.dumps(view.text, ensure_ascii=False)) < 50_000


def test_output_within_the_limit_is_shown_whole() -> None:
    view = render([("stdout", b"a\nb\n"), ("stderr", b"c\n")], reader=READER)

    assert (view.text, view.whole, view.shown) == ("a\nb\nc", True, 6)


def test_lines_of_stderr_are_marked_when_asked() -> None:
    view = render([("stdout", b"a\n"), ("stderr", b"b\n")], reader=READER, tagged=True)

    assert view.text == "a\nstderr: b"


BINARY = [  # VIEW-R2
    (b"", False, "unknown type"),
    (b"text\n" * 3000, False, "unknown type"),
    ("漢字".encode() * 2000, False, "unknown type"),
    (b"latin \xe9\xe8 few\n", False, "unknown type"),
    (b"\xe9\xe8\xff" * 10 + b"abc", True, "unknown type"),
    (b"a\x00b", True, "unknown type"),
    (b"x" * 8192 + b"\x00", False, "unknown type"),
    (b"\x7fELF\x02\x01\x01\x00", True, "ELF file"),
    (b"\x89PNG\r\n\x1a\n\x00", True, "PNG image"),
    (b"\x1f\x8b\x08\x00", True, "gzip data"),
]


@pytest.mark.parametrize(("data", "binary", "words"), BINARY)
def test_binary_is_told_from_text(data: bytes, binary: bool, words: str) -> None:
    """VIEW-R2"""
    assert (is_binary(data), kind(data)) == (binary, words)


def test_a_binary_stream_is_described_and_the_other_one_shown() -> None:
    """VIEW-R2, BASH-R3"""
    view = render([("stdout", b"\x7fELF\x00" * 300), ("stderr", b"warning\n")], reader=READER)

    assert view.text == snapshot(
        """\
warning
[binary output on stdout: ELF file, 1.5 KiB, not shown; run_output("job-3", encoding="base64") reads the bytes]\
"""
    )
    assert not view.whole


SIZES = [
    (0, "0 B"),
    (1023, "1023 B"),
    (1024, "1.0 KiB"),
    (31_800, "31 KiB"),
    (2_200_000, "2.1 MiB"),
    (5 << 30, "5.0 GiB"),
]
SECONDS = [(0.004, "0.00 s"), (0.04, "0.04 s"), (12.38, "12.4 s"), (185, "3 m 5 s"), (7800, "2 h 10 m")]


@pytest.mark.parametrize(("count", "words"), SIZES)
def test_sizes_are_short(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(("value", "words"), SECONDS)
def test_durations_are_short(value: float, words: str) -> None:
    assert seconds(value) == words


def _record(**fields: object) -> JobRecord:
    base = {"id": "i", "session": "s", "handle": "job-3", "label": "", "kind": "command", "state": "exited"}
    return JobRecord(**{**base, **fields})  # type: ignore[arg-type]  # fields vary by row


ENDINGS = [  # TOOL-R5, TOOL-R7, and the rows of the contract's section 4
    ({"exit_code": 1}, "exit 1"),
    ({"exit_code": 143}, "exit 143 (128+15: SIGTERM in a child)"),
    ({"state": "killed", "signal": 9}, "killed by SIGKILL"),
    ({"state": "killed", "signal": 9, "oom_killed": True}, "out of memory, killed by SIGKILL"),
    ({"state": "killed", "signal": 15, "timed_out": True, "timeout": 2.0}, "timed out after 2 s, killed by SIGTERM"),
    ({"state": "killed", "signal": 15, "cancelled": True}, "cancelled, killed by SIGTERM"),
    ({"state": "killed", "signal": 15, "cause": "server_stopped"}, "killed by SIGTERM (cause: server_stopped)"),
    ({"state": "start_failed", "exit_code": 127, "start_error": "not_found"}, "could not start: exit 127 (not_found)"),
    ({"state": "lost", "reason": "supervisor_exited"}, "lost, exit status unknown (supervisor_exited)"),
    ({"state": "running"}, "running"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), ENDINGS)
def test_an_ending_is_told_as_it_was_seen(fields: dict[str, object], words: str) -> None:
    """TOOL-R5, TOOL-R7: facts of the record, none invented."""
    assert ending(_record(**fields)) == words


def test_the_trailer_is_one_line_of_facts() -> None:
    """TOOL-R5"""
    line = trailer("exit 1", "12.4 s", "cwd /app", None, "2.1 MiB out, 31 KiB shown", "job-3")

    assert line == "[exit 1 | 12.4 s | cwd /app | 2.1 MiB out, 31 KiB shown | job-3]"


def test_the_escaped_length_counts_what_json_adds() -> None:
    """CLIENT-R4"""
    assert escaped_length('a"b\\\n漢') == 9
