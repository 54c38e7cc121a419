"""Rules about the source that no linter of ours knows: who imports Ray, who reads the environment, who prints."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = [ROOT / "sdk" / "toolhost_sdk", ROOT / "toolhost" / "toolhost", ROOT / "agents" / "toolhost_agents"]
COMPOSITION_ROOTS = ROOT / "toolhost" / "toolhost" / "hosting"
# In pieces, so that this file does not hold what it looks for.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted",
    "deb." + "debian",
    "registry." + "npmjs",
    "registry-1." + "docker",
]
MACHINE_PATHS = ["/work/" + "main", "/work/" + "shared", "/work/" + "."]


def product_files() -> Iterator[Path]:
    for root in PRODUCT:
        yield from sorted(root.rglob("*.py"))


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout, so there is no list of tracked files")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
    ).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def places(pattern: str, files: list[Path]) -> list[str]:
    found = []
    for path in files:
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


def imported_roots(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def reads_environment(tree: ast.AST) -> bool:
    """Whether code looks something up in the environment; setting a variable for a library is no reading."""
    writes = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
    } | {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("setdefault", "update", "pop")
    }
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        ):
            continue
        if node.attr in ("getenv", "getenvb") or (
            node.attr in ("environ", "environb") and id(node) not in writes
        ):
            return True
    return False


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_is_imported_in_ray_modules_and_composition_roots_only() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in product_files()
        if "ray" in imported_roots(ast.parse(path.read_bytes()))
        and not path.stem.endswith("_ray")
        and not path.is_relative_to(COMPOSITION_ROOTS)
    ]

    assert offenders == []


def test_the_environment_is_read_in_the_settings_only() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in product_files()
        if reads_environment(ast.parse(path.read_bytes())) and path.name != "settings.py"
    ]

    assert offenders == []


def test_product_code_prints_nothing_and_the_library_sets_no_log_level() -> None:
    """DEF-R8. Processes of our own (tool host, ingress, warden) do set theirs."""
    library = [ROOT / "sdk" / "toolhost_sdk" / "endpoints", ROOT / "toolhost" / "toolhost" / "tools"]
    offenders = []
    for path in product_files():
        in_library = any(path.is_relative_to(part) for part in library)
        for node in ast.walk(ast.parse(path.read_bytes())):
            called = node.func if isinstance(node, ast.Call) else None
            prints = isinstance(called, ast.Name) and called.id == "print"
            levels = isinstance(called, ast.Attribute) and called.attr in ("setLevel", "basicConfig")
            if prints or (levels and in_library):
                offenders.append(f"{path.relative_to(ROOT)}:{called.lineno}")

    assert offenders == []


def test_no_tracked_file_names_a_registry_host() -> None:
    assert places("|".join(map(re.escape, REGISTRIES)), tracked_files()) == []


def test_no_tracked_file_holds_a_path_of_the_machine_it_was_written_on() -> None:
    assert places("|".join(map(re.escape, [*MACHINE_PATHS, str(ROOT) + "/"])), tracked_files()) == []


def test_the_lock_holds_hashes_for_everything_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        blocks = re.split(r"\n(?=[A-Za-z])", (ROOT / name).read_text("utf-8").strip())

        assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
        assert [block for block in blocks if "://" in block or "--index" in block] == []


def test_both_locks_agree_on_every_version() -> None:
    product, dev = locked("requirements.lock"), locked("requirements-dev.lock")

    assert {name: version for name, version in product.items() if dev.get(name) != version} == {}


def locked(name: str) -> dict[str, str]:
    """Distributions of a lock by normalised name, with their versions."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", each).lower(): version for each, version in found}


@pytest.mark.parametrize(
    ("lock", "groups"), [("requirements.lock", ["build"]), ("requirements-dev.lock", ["build", "dev"])]
)
def test_the_locks_fulfil_what_the_project_asks_for(lock: str, groups: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    asked = [*project["project"]["dependencies"]]
    for group in groups:
        asked += project["dependency-groups"][group]
    versions = locked(lock)

    unfulfilled = [
        each
        for each in map(Requirement, asked)
        if not each.specifier.contains(versions.get(canonicalize_name(each.name), "0"), prereleases=True)
    ]

    assert unfulfilled == [], "run: make lock"


def test_everything_the_product_imports_is_locked() -> None:
    own = {root.name for root in PRODUCT}
    providers = packages_distributions()
    versions = locked("requirements.lock")
    missing = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in product_files()
        for module in imported_roots(ast.parse(path.read_bytes()))
        if module not in sys.stdlib_module_names
        and module not in own
        and not any(canonicalize_name(each) in versions for each in providers.get(module, ()))
    }

    assert missing == set()
