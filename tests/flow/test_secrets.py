"""Kept secrets: sealed until they are used, cached for a minute at most, dropped when they change, counted at every use."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import msgspec
import pytest

from broker_edge.core.record import VARIABLES_LIMIT, Reading, SourceRecord
from broker_edge.errors import CallerError, EdgeError, Overtaken, TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.rotation import Rotated, rotate
from broker_edge.flow.secrets import Secrets
from broker_edge.guard.vault import Vault, key_id_of, new_entry
from tests.flow.secret_store import MemorySecrets, new_id, ref, source_record, vault

FETCH = Reading("fetch", 1000.0, uuid.uuid4(), "0" * 32)


class Setup:
    def __init__(self, sealing: Vault | None = None, store: MemorySecrets | None = None) -> None:
        self.store = store or MemorySecrets()
        self.vault = sealing or vault()
        self.time = 5000.0
        self.hears = True
        self.crashes: list[BaseException] = []
        self.background = Background(lambda _name, error: self.crashes.append(error))
        self.secrets = Secrets(
            self.store,
            self.vault,
            self.background,
            new_id=new_id,
            within=30.0,
            hears=lambda: self.hears,
            now=lambda: 1000.0,
            monotonic=lambda: self.time,
        )

    async def keep(self, record: SourceRecord, **values: Any) -> None:
        await self.secrets.set(record, "variable", values, complete=False)
        self.store.readings.clear()
        self.store.arrived.clear()

    async def reveal(self, record: SourceRecord, name: str = "token", version: int = 1, reading: Reading = FETCH) -> Any:
        project = None if record.project_id is None else str(record.project_id)
        return (await self.secrets.reveal({"x": ref(record, name, version)}, project, reading))["x"]

    def kept(self, name: str = "token") -> Any:
        return next(secret for secret in self.store.secrets.values() if secret.name == name)


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.fixture
def record() -> SourceRecord:
    return source_record()


async def code_of(work: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        await work
    return caught.value.code


# Revealing


@pytest.mark.parametrize("value", ["s3cret", "", 1, 1.5, True, False, 10**30, "\u00fc\U0001f600"])
async def test_a_secret_comes_back_as_it_was_set(setup: Setup, record: SourceRecord, value: Any) -> None:
    await setup.keep(record, token=value)
    found = await setup.reveal(record)
    assert (type(found), found) == (type(value), value)


async def test_values_that_are_no_references_stay(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    env = {"a": 1, "b": ref(record, "token"), "c": ["x"]}
    assert await setup.secrets.reveal(env, None, FETCH) == {"a": 1, "b": "s3cret", "c": ["x"]}
    assert await setup.secrets.reveal({"a": 1}, None, FETCH) == {"a": 1}


async def test_secrets_of_several_sources_are_revealed_together(setup: Setup) -> None:
    one, other = source_record(), source_record()
    await setup.keep(one, token="first")
    await setup.keep(other, token="second")
    found = await setup.secrets.reveal({"a": ref(one, "token"), "b": ref(other, "token")}, None, FETCH)
    assert found == {"a": "first", "b": "second"}


async def test_a_store_never_sees_a_value(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret-canary")
    assert "s3cret-canary" not in repr(setup.store.secrets)


@pytest.mark.parametrize("value", [None, "gone"])
async def test_one_that_is_not_set_any_more_is_a_missing_variable(setup: Setup, record: SourceRecord, value: Any) -> None:
    await setup.keep(record, token=value)
    with pytest.raises(CallerError) as caught:
        await setup.reveal(record, "token" if value is None else "other")
    assert caught.value.code == "MISSING_VARIABLE"
    assert "x" in caught.value.message


async def test_another_project_s_secret_does_not_open(setup: Setup) -> None:
    record = source_record(uuid.uuid4())
    await setup.keep(record, token="s3cret")
    assert await setup.reveal(record) == "s3cret"
    for project in (None, str(uuid.uuid4())):
        setup.secrets.forget(None)
        assert await code_of(setup.secrets.reveal({"x": ref(record, "token")}, project, FETCH)) == "INTERNAL"


async def test_an_envelope_moved_to_another_row_does_not_open(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret", other="public")
    one, other = setup.kept("token"), setup.kept("other")
    setup.store.secrets[other.secret_id] = type(other)(*(*_members(other)[:-2], one.sealed, "string"))
    assert await code_of(setup.reveal(record, "other")) == "INTERNAL"


def _members(secret: Any) -> tuple[Any, ...]:
    return tuple(getattr(secret, name) for name in secret.__struct_fields__)


async def test_a_broken_store_gives_no_secret(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    setup.store.down = True
    with pytest.raises(TierBroken):
        await setup.reveal(record)
    assert setup.crashes == []


# The cache


async def test_a_secret_is_read_once_a_minute(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    for _ in range(5):
        await setup.reveal(record)
    setup.time += 59.9
    await setup.reveal(record)
    assert len(setup.store.readings) == 1
    setup.time += 0.2
    await setup.reveal(record)
    assert len(setup.store.readings) == 2


async def test_what_is_cached_is_sealed(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret-canary")
    await setup.reveal(record)
    assert setup.secrets._held
    assert "s3cret-canary" not in repr(setup.secrets._held)


@pytest.mark.parametrize("everything", [True, False])
async def test_what_is_forgotten_is_read_anew(setup: Setup, record: SourceRecord, everything: bool) -> None:
    await setup.keep(record, token="old")
    assert await setup.reveal(record) == "old"
    await Setup(setup.vault, setup.store).keep(record, token="new")
    assert await setup.reveal(record) == "old"  # nobody has said anything yet
    setup.secrets.forget(None if everything else record.data_source_id)
    assert await setup.reveal(record) == "new"


async def test_a_reference_to_a_newer_version_is_no_use_of_the_cache(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="old")
    assert await setup.reveal(record) == "old"
    await Setup(setup.vault, setup.store).keep(record, token="new")
    assert await setup.reveal(record, version=2) == "new"


async def test_nothing_is_cached_while_no_change_would_be_heard_of(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    await setup.reveal(record)
    setup.hears = False
    for _ in range(3):
        await setup.reveal(record)
    assert len(setup.store.readings) == 4
    setup.hears = True
    setup.secrets.forget(None)
    await setup.reveal(record)
    await setup.reveal(record)
    assert len(setup.store.readings) == 5


async def test_a_read_that_began_before_hearing_did_is_not_cached(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    setup.hears = False
    setup.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(setup.reveal(record))
        await setup.store.arrived.wait()
        setup.hears = True
        setup.store.gate.set()
    await setup.reveal(record)
    assert len(setup.store.readings) == 2


async def test_concurrent_reads_of_a_source_are_one(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret", other="too")
    setup.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(setup.reveal(record, name)) for name in ("token", "other") * 20]
        await setup.store.arrived.wait()
        setup.store.gate.set()
    assert {task.result() for task in tasks} == {"s3cret", "too"}
    assert len(setup.store.readings) == 1


async def test_who_leaves_takes_nobody_along(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    setup.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(setup.reveal(record))
        await setup.store.arrived.wait()
        second = group.create_task(setup.reveal(record))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        setup.store.gate.set()
    assert first.cancelled()
    assert second.result() == "s3cret"
    assert len(setup.store.readings) == 1


async def test_a_read_overtaken_by_a_change_neither_fills_the_cache_nor_is_joined(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="old")
    setup.store.gate.clear()
    async with asyncio.TaskGroup() as group:
        early = group.create_task(setup.reveal(record))
        await setup.store.arrived.wait()
        setup.store.gate.set()
        await Setup(setup.vault, setup.store).secrets.set(record, "variable", {"token": "new"}, complete=False)
        setup.store.gate.clear()
        setup.secrets.forget(record.data_source_id)
        setup.store.arrived.clear()
        late = group.create_task(setup.reveal(record))
        await setup.store.arrived.wait()
        setup.store.gate.set()
    assert early.result() in ("old", "new")
    assert late.result() == "new"
    assert await setup.reveal(record) == "new"


async def test_a_value_in_the_cache_is_never_older_than_the_last_forget(setup: Setup, record: SourceRecord) -> None:
    """The read is held after it has read: it comes back with what was, when the change is long announced."""
    await setup.keep(record, token="old")
    setup.store.gate.clear()
    other = MemorySecrets()
    other.secrets = setup.store.secrets
    async with asyncio.TaskGroup() as group:
        early = group.create_task(setup.reveal(record))
        await setup.store.arrived.wait()
        await Setup(setup.vault, other).secrets.set(record, "variable", {"token": "new"}, complete=False)
        setup.store.secrets = other.secrets
        setup.secrets.forget(record.data_source_id)
        setup.store.gate.set()
    assert early.result() == "old"
    assert await setup.reveal(record) == "new"


# Audit and counts


async def test_every_read_is_written_down_with_who_and_what_for(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    reading = Reading("test", 1234.5, uuid.uuid4(), "f" * 32)
    await setup.reveal(record, reading=reading)
    assert setup.store.readings == [(record.data_source_id, reading)]


async def test_every_use_is_counted_by_version(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="one", other="x")
    for _ in range(3):
        await setup.reveal(record)
    first = setup.kept()
    await setup.keep(record, token="two")
    await setup.reveal(record, version=2)
    assert setup.store.uses == {}
    await setup.secrets.flush()
    assert setup.store.uses == {(first.secret_id, 1): 3, (first.secret_id, 2): 1}
    await setup.secrets.flush()
    assert sum(setup.store.uses.values()) == 4


async def test_counts_that_the_store_can_not_take_wait(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="s3cret")
    await setup.reveal(record)
    setup.store.down = True
    await setup.secrets.flush()
    await setup.reveal(record)
    setup.store.down = False
    await setup.secrets.flush()
    assert list(setup.store.uses.values()) == [2]


# Setting


async def test_setting_says_what_may_be_told(setup: Setup, record: SourceRecord) -> None:
    values = {"a": "text", "b": 1, "c": 1.5, "d": True, "e": None}
    metas = await setup.secrets.set(record, "variable", values, complete=True)
    assert {meta.name: meta.value_type for meta in metas} == {
        "a": "string",
        "b": "number",
        "c": "number",
        "d": "boolean",
        "e": "null",
    }
    assert [meta.is_set for meta in metas] == [True, True, True, True, False]


async def test_an_unchanged_value_changes_nothing(setup: Setup, record: SourceRecord) -> None:
    metas = await setup.secrets.set(record, "variable", {"token": "same", "gone": None}, complete=False)
    before, known = dict(setup.store.secrets), msgspec.structs.replace(record, secrets=tuple(metas))
    assert await setup.secrets.set(known, "variable", {"token": "same", "gone": None}, complete=False) == metas
    assert (setup.store.secrets, setup.store.writes) == (before, 1)


async def test_what_another_has_set_just_so_is_told_as_it_is_by_then(setup: Setup, record: SourceRecord) -> None:
    """`record` was read before the other one wrote: it knows of no secret."""
    metas = await setup.secrets.set(record, "variable", {"token": "same"}, complete=False)
    before = dict(setup.store.secrets)
    assert await setup.secrets.set(record, "variable", {"token": "same"}, complete=False) == metas
    assert setup.store.secrets == before


class Overtaking(MemorySecrets):
    """Somebody else is quicker at the first `times` writes."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.tried = 0

    async def write(self, *arguments: Any, **options: Any) -> Any:
        self.tried += 1
        if self.tried <= self.times:
            raise Overtaken("the secrets are being changed by others")
        return await super().write(*arguments, **options)


async def test_who_is_overtaken_reads_again_and_sets_what_was_asked(record: SourceRecord) -> None:
    setup = Setup(store=Overtaking(3))
    [meta] = await setup.secrets.set(record, "variable", {"token": "a"}, complete=True)
    assert (meta.name, len(setup.store.readings)) == ("token", 4)


@pytest.mark.parametrize("tries", [1, 20])
async def test_who_is_overtaken_again_and_again_gives_up(record: SourceRecord, tries: int) -> None:
    setup = Setup(store=Overtaking(1000))
    assert await code_of(setup.secrets.set(record, "variable", {"token": "a"}, complete=True, tries=tries)) == (
        "STORAGE_UNAVAILABLE"
    )
    assert len(setup.store.readings) == tries


async def test_a_broken_store_is_asked_once(setup: Setup, record: SourceRecord) -> None:
    reads: list[None] = []

    async def broken(*_: object) -> Any:
        reads.append(None)
        raise TierBroken("the database can't be reached")

    setup.store.read = broken  # type: ignore[method-assign]
    assert await code_of(setup.secrets.set(record, "variable", {"token": "a"}, complete=True)) == "STORAGE_UNAVAILABLE"
    assert len(reads) == 1


@pytest.mark.parametrize("complete", [True, False])
async def test_a_source_has_no_more_variables_than_it_may(setup: Setup, record: SourceRecord, complete: bool) -> None:
    most = {f"v{number}": "x" for number in range(VARIABLES_LIMIT)}
    assert len(await setup.secrets.set(record, "variable", most, complete=True)) == VARIABLES_LIMIT
    more = {**most, "one": "x"} if complete else {"one": "x"}
    before = dict(setup.store.secrets)
    assert await code_of(setup.secrets.set(record, "variable", more, complete=complete)) == "INVALID_REQUEST"
    assert setup.store.secrets == before
    await setup.secrets.set(record, "variable", {"v0": "other"}, complete=False)


@pytest.mark.parametrize(
    ("old", "new"), [("1", 1), (1, True), (1, 1.0), ("a", "b"), ("a", None), (None, "a"), (0, False), ("", None)]
)
async def test_a_changed_value_is_a_new_version_of_the_same_secret(
    setup: Setup, record: SourceRecord, old: Any, new: Any
) -> None:
    await setup.keep(record, token=old, other="x")
    before, other = setup.kept(), setup.kept("other")
    await setup.keep(record, token=new, other="x")
    after = setup.kept()
    assert (after.secret_id, after.version) == (before.secret_id, 2)
    assert setup.kept("other") == other


async def test_a_complete_list_takes_away_what_it_does_not_name(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="a", other="b")
    await setup.secrets.set(record, "credential", {"CLIENT_ID": "c"}, complete=True)
    await setup.secrets.set(record, "variable", {"token": "a"}, complete=True)
    assert sorted(secret.name for secret in setup.store.secrets.values()) == ["CLIENT_ID", "token"]
    await setup.secrets.set(record, "variable", {}, complete=True)
    assert [secret.name for secret in setup.store.secrets.values()] == ["CLIENT_ID"]


async def test_a_secret_whose_key_is_gone_can_be_set_again(record: SourceRecord) -> None:
    store = MemorySecrets()
    await Setup(vault(new_entry("lost")), store).keep(record, token="same")
    setup = Setup(store=store)
    assert await code_of(setup.reveal(record)) == "INTERNAL"
    await setup.keep(record, token="same")
    assert await setup.reveal(record, version=2) == "same"


async def test_one_that_does_not_open_is_told_of_with_the_key_that_lacks(record: SourceRecord) -> None:
    store, told = MemorySecrets(), []
    await Setup(vault(new_entry("lost")), store).keep(record, token="same")
    setup = Setup(store=store)
    setup.secrets._on_unopened = told.append
    with pytest.raises(EdgeError, match="sealed with key lost, which is not among the keys in force"):
        await setup.reveal(record)
    assert [error.key_id for error in told] == ["lost"]


async def test_setting_drops_what_this_process_has_cached(setup: Setup, record: SourceRecord) -> None:
    await setup.keep(record, token="old")
    await setup.reveal(record)
    await setup.keep(record, token="new")
    assert await setup.reveal(record) == "new"


# Rotation


async def test_rotation_seals_everything_under_the_first_key_and_changes_no_value() -> None:
    old, new = new_entry("old"), new_entry("new")
    store, record = MemorySecrets(), source_record(uuid.uuid4())
    before = Setup(vault(old), store)
    await before.keep(record, **{f"v{number}": f"value {number}" for number in range(450)}, unset=None)
    both = Setup(vault(new, old), store)
    await both.secrets.set(record, "credential", {"CLIENT_ID": "already"}, complete=True)
    assert await store.counts() == {"old": 450, "new": 1}
    told: list[None] = []
    assert await rotate(store, both.vault, now=lambda: 1.0, progress=lambda: told.append(None)) == Rotated(450, 0)
    assert len(told) == 450
    assert await store.counts() == {"new": 451}
    alone = Setup(vault(new), store)
    assert [await alone.reveal(record, f"v{number}") for number in (0, 449)] == ["value 0", "value 449"]
    assert {secret.version for secret in store.secrets.values()} == {1}
    assert await rotate(store, both.vault) == Rotated(0, 0)


async def test_rotation_is_audited(record: SourceRecord) -> None:
    old, new = new_entry("old"), new_entry("new")
    store = MemorySecrets()
    await Setup(vault(old), store).keep(record, token="s3cret")
    await rotate(store, vault(new, old), now=lambda: 77.0)
    assert store.readings == [(record.data_source_id, Reading("rotation", 77.0))]


async def test_rotation_goes_on_where_it_was_ended() -> None:
    old, new = new_entry("old"), new_entry("new")
    store, records = MemorySecrets(), [source_record() for _ in range(5)]
    for record in records:
        await Setup(vault(old), store).keep(record, token="s3cret")
    store.readings.clear()
    read, calls = store.read, random.Random(7)

    async def ended(*arguments: Any) -> Any:
        if store.readings and calls.random() < 0.5:
            raise TierBroken("the database can't be reached")
        return await read(*arguments)

    store.read = ended  # type: ignore[method-assign]
    done = 0
    while await store.counts() != {"new": 5}:
        try:
            done += (await rotate(store, vault(new, old))).resealed
        except TierBroken:
            store.readings.clear()
    store.read = read  # type: ignore[method-assign]
    assert [await Setup(vault(new), store).reveal(record) for record in records] == ["s3cret"] * 5


async def test_rotation_says_what_no_key_opens_and_does_the_rest() -> None:
    old, new, lost = new_entry("old"), new_entry("new"), new_entry("lost")
    store, record, other = MemorySecrets(), source_record(), source_record()
    await Setup(vault(lost), store).keep(record, **{f"v{number}": "x" for number in range(300)})
    await Setup(vault(old), store).keep(other, token="s3cret")
    assert await rotate(store, vault(new, old)) == Rotated(1, 300)
    assert await store.counts() == {"lost": 300, "new": 1}


async def test_a_secret_changed_during_its_rotation_keeps_its_new_value(record: SourceRecord) -> None:
    old, new = new_entry("old"), new_entry("new")
    store = MemorySecrets()
    writer = Setup(vault(old), store)
    await writer.keep(record, token="before")
    reseal = store.reseal

    async def overtaken(secret: Any, sealed: str) -> bool:
        store.reseal = reseal  # type: ignore[method-assign]
        await writer.secrets.set(record, "variable", {"token": "after"}, complete=False)
        return await reseal(secret, sealed)

    store.reseal = overtaken  # type: ignore[method-assign]
    assert await rotate(store, vault(new, old)) == Rotated(1, 0)
    assert await Setup(vault(new), store).reveal(record, version=2) == "after"
    assert key_id_of(writer.kept().sealed) == "new"
