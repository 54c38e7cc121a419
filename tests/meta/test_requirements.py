"""The table of requirements and the tests agree."""

from __future__ import annotations

from tests.meta.requirements import ROOT, TABLE, areas_of, citations, read_table


def test_every_requirement_that_is_done_is_cited_by_a_test() -> None:
    table = read_table(TABLE.read_text("utf-8"))
    cited = citations(ROOT / "tests", areas_of(table))

    assert [row.id for row in table.values() if row.status == "done" and row.id not in cited] == []


def test_every_cited_requirement_is_in_the_table() -> None:
    table = read_table(TABLE.read_text("utf-8"))
    cited = citations(ROOT / "tests", areas_of(table))

    assert {each: paths for each, paths in cited.items() if each not in table} == {}


def test_no_requirement_that_is_put_off_is_cited_as_if_it_were_shown() -> None:
    table = read_table(TABLE.read_text("utf-8"))
    cited = citations(ROOT / "tests", areas_of(table))

    assert [row.id for row in table.values() if row.status == "open" and row.id in cited] == []
