"""Records and leases on disk: what a restart finds, and what another boot means."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.commands import until

from toolhost_sdk.errors import NotFoundError, UsageError
from toolhost_sdk.node import clock, records
from toolhost_sdk.node.leases import Leases
from toolhost_sdk.node.logstore import LogWriter
from toolhost_sdk.node.places import Places
from toolhost_sdk.node.port import Cause, Gap, JobRecord
from toolhost_sdk.node.records import Records
from toolhost_sdk.node.sweep import settle

pytestmark = pytest.mark.anyio


def job(**values: object) -> JobRecord:
    fixed = {"id": "a1", "session": "s", "handle": "", "label": "", "kind": "command", "state": "starting"}
    return replace(JobRecord(**fixed), **values)  # type: ignore[arg-type]  # plain words of a test


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path


def test_a_record_survives_the_way_through_plain_data() -> None:
    whole = job(
        gaps=(Gap(start=1, end=5, reason="no_space"),), leftovers=("7 sleep",), pids=(7,), exit_code=3
    )

    assert records.from_doc({**records.to_doc(whole), "of a newer release": 1}) == whole


def test_handles_count_up_over_restarts_and_deletions(home: Path) -> None:
    """TOOL-R3"""
    stored = Records(home)
    first = stored.insert(job(id="a"), key=None, lease=None, boot="b")
    stored.delete("a")
    stored.close()
    stored = Records(home)
    second = stored.insert(job(id="c"), key=None, lease=None, boot="b")
    stored.close()

    assert (first.handle, second.handle) == ("job-1", "job-2")


@pytest.mark.parametrize(("boot", "reason"), [(clock.BOOT_ID, "supervisor_exited"), ("another", "node_lost")])
def test_what_ran_in_another_boot_is_lost_with_its_node(home: Path, boot: str, reason: str) -> None:
    """TIME-R2 ZERO-2"""
    stored = Records(home)
    record = stored.insert(job(id=Places(home / "jobs").make()), key=None, lease=None, boot=boot)
    log = LogWriter(home / "jobs" / record.id, limit=1 << 20)
    log.append("stderr", b"last words")
    log.close()

    settle(home, stored, record, boot, ())
    found = stored.get(record.id)
    stored.close()

    assert found is not None
    assert (found[0].state, found[0].reason, found[0].exit_code, found[0].size) == ("lost", reason, None, 10)
    assert records.read_state(home / "jobs" / record.id) == found[0]


def test_a_durable_state_wins_over_a_record_the_disk_refused(home: Path) -> None:
    """ZERO-2"""
    stored = Records(home)
    record = stored.insert(job(id=Places(home / "jobs").make()), key=None, lease=None, boot=clock.BOOT_ID)
    ended = replace(record, state="exited", exit_code=0, ended_at=1.0)
    records.write_state(home / "jobs" / record.id, ended)

    settle(home, stored, record, clock.BOOT_ID, ())

    assert stored.get(record.id) == (ended, False)
    stored.close()


def test_processes_that_cannot_be_ended_keep_their_record_from_being_done(home: Path) -> None:
    """ZERO-1"""
    stored = Records(home)
    record = stored.insert(job(id=Places(home / "jobs").make()), key=None, lease=None, boot=clock.BOOT_ID)

    settle(home, stored, record, clock.BOOT_ID, (4711,))
    found = stored.get(record.id)
    stored.close()

    assert found is not None and (found[0].state, found[0].pids, found[0].done) == ("killing", (4711,), False)


async def test_leases_of_another_boot_are_dead_and_those_of_this_one_go_on(home: Path) -> None:
    """TIME-R2 LEASE-R1 ZERO-6"""
    stored = Records(home)
    kept = Leases(stored, _nothing).open("owner", ttl=60, max_life=None, holds=True)
    row = stored.leases()[0]
    stored.put_lease(replace(row, id="old", boot="another"))

    again = Leases(stored, _nothing)

    assert [lease.id for lease in again.holders()] == [kept.id]
    assert again.renew(kept.id).expires_in == pytest.approx(60, abs=1)
    with pytest.raises(NotFoundError, match="old"):
        again.renew("old")
    with pytest.raises(UsageError, match="ttl"):
        again.open("owner", ttl=0, max_life=None)
    stored.close()


async def test_an_expired_lease_is_never_renewed_even_before_the_timer_fires(home: Path) -> None:
    """LEASE-R2"""
    stored = Records(home)
    ended: list[str] = []

    async def on_end(lease: str, cause: Cause) -> None:
        ended.append(lease)

    leases = Leases(stored, on_end)
    lease = leases.open("owner", ttl=0.05, max_life=None)
    watch = asyncio.create_task(leases.watch(1.0))
    until = clock.now() + 5
    while not ended and clock.now() < until:
        try:
            leases.check(lease.id)
        except NotFoundError:
            with pytest.raises(NotFoundError):
                leases.renew(lease.id)
        await asyncio.sleep(0)
    watch.cancel()

    assert ended == [lease.id] and stored.leases() == []
    stored.close()


async def test_leases_end_while_the_database_takes_nothing(home: Path) -> None:
    """LEASE-R1 LEASE-R2: a disk without room keeps no job alive."""
    stored = Records(home)
    ended: list[str] = []

    async def on_end(lease: str, cause: Cause) -> None:
        ended.append(lease)

    leases = Leases(stored, on_end)
    expiring = [leases.open("owner", ttl=ttl, max_life=None).id for ttl in (0.05, 0.1)]
    released = leases.open("owner", ttl=60, max_life=None).id
    refuse_writes(stored)
    watch = asyncio.create_task(leases.watch(1.0))

    await leases.release(released, "cancelled")

    async def over() -> bool:
        return len(ended) == 3 or watch.done()

    await until(over)
    still_watching = watch.cancel()
    stored.close()

    assert (ended, still_watching) == ([released, *expiring], True)


def refuse_writes(stored: Records) -> None:
    """What a full disk does, of the database alone."""
    stored._db.execute("PRAGMA query_only = 1")


async def _nothing(lease: str, cause: Cause) -> None:
    return None


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "3"])
def test_seconds_that_bound_nothing_are_refused(value: object) -> None:
    """TIME-R1"""
    with pytest.raises(UsageError, match="wait"):
        clock.seconds(value, "wait")  # type: ignore[arg-type]  # what callers send
