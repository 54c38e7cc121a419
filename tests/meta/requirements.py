"""The table of requirements in `docs/requirements.md`, and which tests cite which of them.

Run as a program it rewrites the table's last column: `python -m tests.meta.requirements`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "requirements.md"
_ROW = re.compile(
    r"\| (?P<id>[A-Z]+-[RA]?\d+) \| (?P<text>[^|]+) \| (?P<status>done|open|later: [^|]+?) \| (?P<tests>[^|]*)\|"
)
_SELF = {"requirements.py", "test_requirements.py"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    id: str
    text: str
    status: str


def read_table(text: str) -> dict[str, Requirement]:
    """The rows by id. Raises ValueError for a row that is none, or an id that is there twice."""
    found: dict[str, Requirement] = {}
    for line in text.splitlines():
        if not re.match(r"\| [A-Z]+-", line):
            continue
        match = _ROW.fullmatch(line)
        if match is None:
            raise ValueError(f"no row of the table: {line}")
        if match["id"] in found:
            raise ValueError(f"{match['id']} is in the table twice")
        found[match["id"]] = Requirement(id=match["id"], text=match["text"], status=match["status"])
    return found


def id_pattern(areas: set[str]) -> re.Pattern[str]:
    """Ids of these areas as words of their own: `DEF-R1`, `DEF-A2`, `ZERO-1`."""
    return re.compile(rf"\b(?:{'|'.join(sorted(areas))})-[RA]?\d+\b")


def citations(tests: Path, areas: set[str]) -> dict[str, list[str]]:
    """Which test files cite which ids, as paths relative to the repository."""
    pattern = id_pattern(areas)
    cited: dict[str, set[str]] = {}
    for path in sorted(tests.rglob("*.py")):
        if path.name in _SELF:
            continue
        for each in pattern.findall(path.read_text("utf-8")):
            cited.setdefault(each, set()).add(str(path.relative_to(tests.parent)))
    return {each: sorted(paths) for each, paths in sorted(cited.items())}


def areas_of(table: Mapping[str, Requirement]) -> set[str]:
    return {each.rsplit("-", 1)[0] for each in table}


def with_tests(text: str, cited: Mapping[str, list[str]]) -> str:
    """The document with its last column filled in."""

    def fill(match: re.Match[str]) -> str:
        names = ", ".join(f"`{path.removeprefix('tests/')}`" for path in cited.get(match["id"], ()))
        return f"| {match['id']} | {match['text']} | {match['status']} | {names + ' ' if names else ''}|"

    return _ROW.sub(fill, text)


def main() -> int:
    text = TABLE.read_text("utf-8")
    TABLE.write_text(with_tests(text, citations(ROOT / "tests", areas_of(read_table(text)))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
