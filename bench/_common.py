"""What the benchmarks share: figures of one run, where they were taken, and the file they go to.

Absolute times drift from machine to machine; compare ratios taken in one run.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def run_metadata(*distributions: str) -> dict[str, Any]:
    """Where and with what a run was taken; versions of *distributions* beside Python's."""
    return {
        "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: metadata.version(name) for name in distributions},
    }


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return found.stdout.strip() or None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* (0 to 1) of *values* lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's median over the rounds."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


async def latency(
    call: Callable[[], Awaitable[object]], count: int, *, warm_up: int = 50
) -> dict[str, float]:
    """p50 and p99 in microseconds of *count* calls made one after the other."""
    for _ in range(warm_up):
        await call()
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - started) * 1e6)
    return {"p50_us": percentile(taken, 0.5), "p99_us": percentile(taken, 0.99)}


async def throughput(call: Callable[[], Awaitable[object]], count: int, in_flight: int) -> float:
    """Calls per second with *in_flight* callers that make *count* calls in all."""

    async def caller() -> None:
        for _ in range(count // in_flight):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return count // in_flight * in_flight / (time.perf_counter() - started)


def write_results(name: str, results: Mapping[str, Any]) -> Path:
    """Write `bench/results/<name>.json` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


def report(name: str, results: Mapping[str, Any], bars: Mapping[str, tuple[float, float]]) -> int:
    """Write and print *results* and how each bar came out; the exit code to leave with.

    Args:
        bars: by name: the figure measured and the most it may be.
    """
    verdicts = {
        bar: {"measured": round(measured, 4), "at_most": most, "met": measured <= most}
        for bar, (measured, most) in bars.items()
    }
    path = write_results(name, {**results, "bars": verdicts})
    print(json.dumps({**results, "bars": verdicts}, indent=2))
    print(f"written to {path.relative_to(ROOT)}", file=sys.stderr)
    return 0 if all(verdict["met"] for verdict in verdicts.values()) else 1
