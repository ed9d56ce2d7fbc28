"""The registry over a scripted store and bus: what is served when, and who hears of what."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from broker_edge.core.exchange import SecretRef
from broker_edge.core.record import Draft, SecretMeta, SourceRecord
from broker_edge.errors import CallerError, EdgeError, TierBroken
from broker_edge.flow import snapshot
from broker_edge.flow.background import Background
from broker_edge.flow.registry import Registry

PATIENCE = 30.0
PROJECT = str(uuid.uuid4())
URL = "https://api.example.com/{{ id }}"


class Shelf:
    """A store in memory; `gate` holds its answers back, `down` makes it fail, `meanwhile` runs before the
    next replacement, an event in `late` holds back what the next read has already found."""

    def __init__(self) -> None:
        self.rows: dict[uuid.UUID, SourceRecord] = {}
        self.reads: list[set[uuid.UUID]] = []
        self.compared = 0
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.meanwhile: list[Callable[[], None]] = []
        self.late: list[asyncio.Event] = []
        self.called = asyncio.Event()
        self._told: Mapping[uuid.UUID, int] = {}

    async def revisions(self) -> Mapping[uuid.UUID, int]:
        await self._reach()
        self.compared += 1
        revisions = {each: row.revision for each, row in self.rows.items()}
        self._told = self._told if self._told == revisions else revisions
        return self._told

    async def read(self, ids: Collection[uuid.UUID]) -> Sequence[SourceRecord]:
        self.reads.append(set(ids))
        await self._reach()
        found = [self.rows[each] for each in ids if each in self.rows]
        if self.late:
            await self.late.pop().wait()
        return found

    async def create(self, record: SourceRecord) -> None:
        await self._reach()
        self._check_name(record)
        self.rows[record.data_source_id] = record

    async def replace(self, record: SourceRecord, *, expected: int) -> bool:
        await self._reach()
        if self.meanwhile:
            self.meanwhile.pop(0)()
        if not self._is(record.data_source_id, expected):
            return False
        self._check_name(record)
        self.rows[record.data_source_id] = record
        return True

    async def remove(self, data_source_id: uuid.UUID, *, expected: int) -> bool:
        await self._reach()
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return self._is(data_source_id, expected) and self.rows.pop(data_source_id, None) is not None

    def put(self, record: SourceRecord, **members: Any) -> SourceRecord:
        """As another process does it."""
        changed = msgspec.structs.replace(record, **{"revision": record.revision + 1, **members})
        self.rows[record.data_source_id] = changed
        return changed

    def _is(self, data_source_id: uuid.UUID, revision: int) -> bool:
        row = self.rows.get(data_source_id)
        return row is not None and row.revision == revision

    def _check_name(self, record: SourceRecord) -> None:
        for row in self.rows.values():
            same = (row.project_id, row.name) == (record.project_id, record.name)
            if same and row.data_source_id != record.data_source_id and row.status != "ARCHIVED":
                raise CallerError("DATA_SOURCE_ALREADY_EXISTS", "the name is taken by another data source")

    async def _reach(self) -> None:
        self.called.set()
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.down:
            raise TierBroken("the database can't be reached")


class Wire:
    """A bus between registries; `cut` ends what listens and lets nobody begin."""

    def __init__(self) -> None:
        self.told: list[uuid.UUID] = []
        self.hearers: list[Callable[[uuid.UUID], None]] = []
        self.cut = False
        self._ends: list[asyncio.Future[None]] = []

    async def publish(self, data_source_id: uuid.UUID) -> None:
        if self.cut:
            raise TierBroken("the bus is gone")
        self.told.append(data_source_id)
        for heard in tuple(self.hearers):
            heard(data_source_id)

    async def hear(self, heard: Callable[[uuid.UUID], None], listening: Callable[[], None]) -> None:
        if self.cut:
            raise TierBroken("the bus is gone")
        end = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        self.hearers.append(heard)
        try:
            listening()
            await end
        finally:
            self.hearers.remove(heard)
        raise TierBroken("the bus is gone")

    def break_off(self) -> None:
        self.cut = True
        for end in self._ends:
            if not end.done():
                end.set_result(None)


class House:
    """A store, a bus, and registries of several processes upon them."""

    def __init__(self) -> None:
        self.shelf, self.wire = Shelf(), Wire()
        self.failures: list[tuple[str, BaseException]] = []
        self.clock = 0.0
        self._ids = itertools.count(1)

    def registry(self, **options: Any) -> Registry:
        chosen: dict[str, Any] = {"clock": lambda: self.clock, "now": lambda: 1000.0, "timeout": PATIENCE} | options
        return Registry(
            self.shelf,
            self.wire,
            new_id=lambda: uuid.UUID(int=next(self._ids)),
            on_failure=lambda what, error: self.failures.append((what, error)),
            **chosen,
        )

    @contextlib.asynccontextmanager
    async def running(self, registry: Registry) -> AsyncIterator[Registry]:
        """Loaded, following and watching."""
        background = Background(lambda _what, _error: None)
        await registry.refresh()
        background.supervise("registry", registry.watch, 0.001)
        background.supervise("bus", registry.follow, 0.001)
        try:
            await until(lambda: registry.hearing or self.wire.cut)
            yield registry
        finally:
            await background.stop()


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def registry(house: House) -> Registry:
    """Loaded, and left alone: nothing happens behind its back."""
    made = house.registry()
    await made.refresh()
    return made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if holds():
                return
            await asyncio.sleep(0)


def draft(name: str = "score", source: dict[str, Any] | None = None, /, **members: Any) -> Draft:
    return Draft(**{"name": name, "source": {"url": URL} | (source or {}), **members})


def meta(name: str, kind: Any = "variable", *, value_type: Any = "string", version: int = 1) -> SecretMeta:
    return SecretMeta(uuid.uuid4(), kind, name, version, value_type, 1.0, 1.0)


async def refused(code: str, call: Awaitable[object]) -> str:
    with pytest.raises(EdgeError) as caught:
        await call
    assert caught.value.code == code
    return caught.value.message


def unknown(registry: Registry, name: str, project: str | None = None, code: str = "DATA_SOURCE_NOT_FOUND") -> None:
    with pytest.raises(EdgeError) as caught:
        registry.named(project, name)
    assert caught.value.code == code


async def test_what_is_created_is_served_at_once_and_announced(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    named = registry.named(None, "score")
    assert (named.record, named.generation, named.project) == (record, record.generation, None)
    assert named.source.data_source_id == record.data_source_id
    assert house.wire.told == [record.data_source_id]
    assert len(registry) == 1
    assert house.shelf.reads == [], "what was written need not be read"


async def test_a_change_is_served_at_once_under_another_generation(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    changed = await registry.update(None, record.data_source_id, draft("rating", {"method": "POST"}))
    assert registry.named(None, "rating").generation == changed.generation == record.generation + 1
    assert registry.named(None, "rating").source.request.method == "POST"
    unknown(registry, "score")
    assert house.wire.told == [record.data_source_id] * 2


async def test_drafts_and_published_sources_serve_and_archived_ones_never(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    assert (await registry.publish(None, record.data_source_id)).status == "PUBLISHED"
    assert registry.named(None, "score").generation == record.generation + 1
    assert (await registry.remove(None, record.data_source_id)).status == "ARCHIVED"
    unknown(registry, "score")
    assert (await registry.get(None, record.data_source_id)).status == "ARCHIVED"
    assert len(registry) == 0
    fresh = house.registry()
    await fresh.refresh()
    unknown(fresh, "score")


async def test_an_archived_source_takes_no_change(registry: Registry) -> None:
    record = await registry.create(None, draft())
    await registry.publish(None, record.data_source_id)
    await registry.remove(None, record.data_source_id)
    for call in (
        registry.update(None, record.data_source_id, draft()),
        registry.publish(None, record.data_source_id),
        registry.remove(None, record.data_source_id),
    ):
        await refused("DATA_SOURCE_NOT_FOUND", call)
    again = await registry.create(None, draft())
    assert registry.named(None, "score").record == again, "its name is free"


async def test_a_draft_is_deleted(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    await registry.remove(None, record.data_source_id)
    assert house.shelf.rows == {}
    unknown(registry, "score")
    await refused("DATA_SOURCE_NOT_FOUND", registry.get(None, record.data_source_id))


async def test_another_projects_source_does_not_exist(registry: Registry, house: House) -> None:
    record = await registry.create(PROJECT, draft())
    await registry.create(None, draft())
    house.shelf.put(record, secrets=(meta("token"),))
    await registry.refresh()
    assert registry.named(PROJECT, "score").project == PROJECT
    assert registry.named(None, "score").record != record
    for project in (None, str(uuid.uuid4())):
        for call in (
            registry.get(project, record.data_source_id),
            registry.update(project, record.data_source_id, draft()),
            registry.publish(project, record.data_source_id),
            registry.remove(project, record.data_source_id),
        ):
            await refused("DATA_SOURCE_NOT_FOUND", call)
        with pytest.raises(CallerError, match="no such data source"):
            registry.ref(project, record.data_source_id, "token")
    unknown(registry, "score", str(uuid.uuid4()))
    assert registry.ref(PROJECT, record.data_source_id, "token").name == "token"
    assert await registry.list(str(uuid.uuid4())) == []


async def test_refusals_change_nothing(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    other = await registry.create(None, draft("other"))
    await registry.publish(None, record.data_source_id)
    rows, told = dict(house.shelf.rows), len(house.wire.told)
    await refused("DATA_SOURCE_ALREADY_EXISTS", registry.create(None, draft()))
    await refused("DATA_SOURCE_ALREADY_EXISTS", registry.update(None, other.data_source_id, draft("score")))
    await refused("INVALID_DATA_SOURCE", registry.create(None, draft("", {})))
    await refused("TEMPLATE_REJECTED", registry.create(None, draft("bad", {"url": "https://a.example/{{ f() }}"})))
    message = await refused(
        "INVALID_DATA_SOURCE", registry.update(None, record.data_source_id, draft("score", {"method": "PUT"}))
    )
    assert "source.method" in message
    assert house.shelf.rows == rows
    assert len(house.wire.told) == told
    assert registry.named(None, "other").record == other


async def test_what_changes_nothing_is_neither_written_nor_announced(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    assert await registry.update(None, record.data_source_id, draft("score", {"method": "GET"})) == record
    await registry.publish(None, record.data_source_id)
    told = len(house.wire.told)
    await registry.publish(None, record.data_source_id)
    assert len(house.wire.told) == told


async def test_lists_are_of_one_project_and_by_status(registry: Registry, house: House) -> None:
    times = itertools.count(1)
    registry = house.registry(now=lambda: float(next(times)))
    for name in ("kept", "public", "gone"):
        await registry.create(None, draft(name))
    ids = {record.name: record.data_source_id for record in house.shelf.rows.values()}
    await registry.create(PROJECT, draft("foreign"))
    await registry.publish(None, ids["public"])
    await registry.publish(None, ids["gone"])
    await registry.remove(None, ids["gone"])
    other = house.registry()

    async def names(**asked: Any) -> list[str]:
        return [record.name for record in await other.list(None, **asked)]

    assert await names() == ["kept", "public"]
    assert await names(include_archived=True) == ["kept", "public", "gone"]
    assert await names(status="PUBLISHED") == ["public"]
    assert await names(status="ARCHIVED") == ["gone"]
    assert await names(status="DRAFT", include_archived=True) == ["kept"]


async def test_the_environment_names_every_secret_that_is_set(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft("score", {"headers": {"X": "{{ env.token }}", "Y": "{{ env.API_KEY }}"}}))
    secrets = (
        meta("token", version=3),
        meta("flag", value_type="boolean"),
        meta("unset", value_type="null"),
        meta("CLIENT_ID", "credential"),
        meta("API_KEY", "credential"),
    )
    house.shelf.put(record, secrets=secrets)
    await registry.secrets_changed(record.data_source_id)
    env = registry.named(None, "score").env
    assert set(env) == {"token", "flag", "CLIENT_ID"}, "no template gets at a credential"
    assert env["token"] == SecretRef(record.data_source_id, "variable", "token", 3)
    assert registry.ref(None, record.data_source_id, "API_KEY").kind == "credential"


async def test_a_credential_that_the_authentication_uses_is_in_the_environment(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft("score", {"auth": {"method": "api_key", "name": "X-Key"}}))
    house.shelf.put(record, secrets=(meta("API_KEY", "credential"),))
    await registry.secrets_changed(record.data_source_id)
    assert set(registry.named(None, "score").env) == {"API_KEY"}


async def test_a_name_that_is_a_variable_and_a_credential_is_the_variable(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.put(record, secrets=(meta("API_KEY", "credential"), meta("API_KEY")))
    await registry.secrets_changed(record.data_source_id)
    assert registry.ref(None, record.data_source_id, "API_KEY").kind == "variable"


async def test_a_reference_is_found_without_a_look_at_the_source_s_other_secrets(
    registry: Registry, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await registry.create(None, draft())
    house.shelf.put(record, secrets=tuple(meta(f"v{number}") for number in range(1000)))
    await registry.secrets_changed(record.data_source_id)
    monkeypatch.setattr(SecretMeta, "is_set", property(lambda _: pytest.fail("looked at a secret")))
    for number in range(1000):
        assert registry.ref(None, record.data_source_id, f"v{number}").name == f"v{number}"


async def test_sources_with_many_secrets_let_others_have_their_turn(registry: Registry, house: House) -> None:
    many = tuple(meta(f"v{number}") for number in range(1000))
    for number in range(10):
        record = await registry.create(None, draft(f"source-{number}"))
        house.shelf.put(record, secrets=many)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        await asyncio.sleep(0)
        before = turns
        await registry.refresh()
        counting.cancel()
    assert turns - before >= 10


async def test_a_draft_that_is_made_again_under_its_id_has_another_generation(registry: Registry, house: House) -> None:
    times = iter((2000.0, 2000.001))
    other = house.registry(now=lambda: next(times))
    first = await other.create(None, draft())
    await registry.remove(None, first.data_source_id)
    again = await other.create(None, draft(data_source_id=first.data_source_id))
    assert again.generation != first.generation


async def test_a_reference_to_nothing_is_refused(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.put(record, secrets=(meta("unset", value_type="null"),))
    await registry.secrets_changed(record.data_source_id)
    for name in ("unset", "other"):
        with pytest.raises(CallerError) as caught:
            registry.ref(None, record.data_source_id, name)
        assert caught.value.code == "MISSING_VARIABLE"
        assert name in caught.value.message
    await registry.publish(None, record.data_source_id)
    await registry.remove(None, record.data_source_id)
    with pytest.raises(CallerError) as caught:
        registry.ref(None, record.data_source_id, "token")
    assert caught.value.code == "DATA_SOURCE_NOT_FOUND"


async def test_changed_secrets_are_read_announced_and_leave_the_answers_usable(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    before = registry.named(None, "score")
    house.shelf.put(record, secrets=(meta("token"),))
    await registry.secrets_changed(record.data_source_id)
    after = registry.named(None, "score")
    assert after.env.keys() == {"token"}
    assert after.generation == before.generation
    assert after.source is before.source, "nothing is compiled again"
    assert house.wire.told == [record.data_source_id] * 2


async def test_secrets_that_can_not_be_read_back_are_read_as_soon_as_the_database_answers(house: House) -> None:
    async with house.running(house.registry()) as registry:
        record = await registry.create(None, draft())
        house.shelf.put(record, secrets=(meta("token"),))
        house.shelf.down = True
        await registry.secrets_changed(record.data_source_id)
        assert registry.named(None, "score").env == {}
        house.shelf.down = False
        await until(lambda: registry.named(None, "score").env.keys() == {"token"})


async def test_a_comparison_reads_what_differs_and_drops_what_is_gone(registry: Registry, house: House) -> None:
    one, two, three = [await registry.create(None, draft(name)) for name in ("one", "two", "three")]
    kept = registry.named(None, "one")
    house.shelf.put(two, description="new")
    del house.shelf.rows[three.data_source_id]
    await registry.refresh()
    assert house.shelf.reads == [{two.data_source_id}]
    assert registry.named(None, "one") is kept
    assert registry.named(None, "two").record.description == "new"
    unknown(registry, "three")
    await registry.refresh()
    assert len(house.shelf.reads) == 1
    assert one.data_source_id in house.shelf.rows


async def test_a_source_that_was_made_again_under_its_id_is_read_again(registry: Registry, house: House) -> None:
    other = house.registry(now=lambda: 2000.0)
    record = await registry.create(None, draft())
    await other.remove(None, record.data_source_id)
    await other.create(None, draft("score", {"method": "POST"}, data_source_id=record.data_source_id))
    await registry.refresh()
    assert registry.named(None, "score").source.request.method == "POST"


async def test_names_that_were_swapped_are_swapped_in_one_step(registry: Registry, house: House) -> None:
    one, two = await registry.create(None, draft("one")), await registry.create(None, draft("two"))
    house.shelf.put(one, name="two")
    house.shelf.put(two, name="one")
    await registry.refresh()
    assert registry.named(None, "two").record.data_source_id == one.data_source_id
    assert registry.named(None, "one").record.data_source_id == two.data_source_id


async def test_a_name_may_go_to_another_source_before_its_first_owner_is_heard_of(registry: Registry, house: House) -> None:
    one, two = await registry.create(None, draft("one")), await registry.create(None, draft("two"))
    house.shelf.put(one, name="three")
    house.shelf.put(two, name="one")
    await registry.secrets_changed(two.data_source_id)
    assert registry.named(None, "one").record.data_source_id == two.data_source_id
    await registry.secrets_changed(one.data_source_id)
    assert registry.named(None, "one").record.data_source_id == two.data_source_id
    assert registry.named(None, "three").record.data_source_id == one.data_source_id


async def test_a_source_that_can_not_be_compiled_takes_no_other_along(registry: Registry, house: House) -> None:
    strange, sound = await registry.create(None, draft("strange")), await registry.create(None, draft("sound"))
    broken = house.shelf.put(strange, source={"url": URL, "method": "TRACE"})
    house.shelf.put(sound, description="new")
    await registry.refresh()
    unknown(registry, "strange", code="INVALID_DATA_SOURCE")
    assert registry.named(None, "sound").record.description == "new"
    [(what, error)] = house.failures
    assert str(strange.data_source_id) in what
    assert isinstance(error, CallerError)
    assert [record.name for record in await registry.list(None)] == ["strange", "sound"]
    house.shelf.put(broken, source={"url": URL})
    await registry.refresh()
    assert registry.named(None, "strange").source.request.method == "GET"
    house.shelf.put(broken, revision=broken.revision + 5)
    await registry.refresh()
    await registry.remove(None, strange.data_source_id)
    unknown(registry, "strange")


async def test_before_the_first_load_nothing_is_said_of_what_there_is_not(house: House) -> None:
    registry = house.registry()
    unknown(registry, "score", code="STORAGE_UNAVAILABLE")
    with pytest.raises(TierBroken):
        registry.ref(None, uuid.uuid4(), "token")
    await registry.refresh()
    unknown(registry, "score")


async def test_while_the_database_is_down_the_snapshot_serves_and_grows_older(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.down = True
    house.clock = 100.0
    with pytest.raises(TierBroken):
        await registry.refresh()
    assert registry.named(None, "score").generation == record.generation
    assert registry.age() == 100.0
    house.shelf.down = False
    await registry.refresh()
    assert registry.age() == 0.0


async def test_a_database_that_does_not_answer_is_given_up(house: House) -> None:
    registry = house.registry(timeout=0.01)
    house.shelf.gate.clear()
    for call in (registry.refresh(), registry.get(None, uuid.uuid4()), registry.create(None, draft())):
        assert "in time" in await refused("STORAGE_UNAVAILABLE", call)


async def test_a_change_elsewhere_is_served_once_it_is_heard(house: House) -> None:
    async with house.running(house.registry()) as one, house.running(house.registry()) as two:
        record = await one.create(None, draft())
        await until(lambda: len(two) == 1)
        await one.update(None, record.data_source_id, draft("score", {"method": "POST"}))
        await until(lambda: two.named(None, "score").source.request.method == "POST")
        await one.remove(None, record.data_source_id)
        await until(lambda: len(two) == 0)


async def test_what_is_heard_while_the_store_is_busy_is_read_in_one_go(house: House) -> None:
    async with house.running(house.registry()) as registry:
        records = [await registry.create(None, draft(f"source {number}")) for number in range(20)]
        await until(lambda: not registry._heard and not registry._turn.locked())
        house.shelf.reads.clear()
        house.shelf.gate.clear()
        for number, record in enumerate(records):
            house.shelf.put(record, description="new")
            registry.changed(record.data_source_id)
            if number == 0:
                await until(lambda: len(house.shelf.reads) == 1)
        house.shelf.gate.set()
        await until(lambda: registry.named(None, "source 19").record.description == "new")
        assert house.shelf.reads == [{records[0].data_source_id}, {record.data_source_id for record in records[1:]}]


async def test_listeners_hear_of_every_change_and_of_deafness(house: House) -> None:
    heard: list[uuid.UUID | None] = []
    async with house.running(house.registry()) as registry:
        registry.listeners.append(heard.append)
        record = await registry.create(None, draft())
        assert record.data_source_id in heard
        heard.clear()
        house.shelf.put(record, secrets=(meta("token"),))
        await registry.secrets_changed(record.data_source_id)
        assert record.data_source_id in heard
        heard.clear()
        house.wire.break_off()
        await until(lambda: not registry.hearing)
        assert heard == [None]
        heard.clear()
        house.wire.cut = False
        await until(lambda: registry.hearing)
        assert None in heard


async def test_a_change_that_is_found_by_comparing_is_told_to_listeners_too(registry: Registry, house: House) -> None:
    heard: list[uuid.UUID | None] = []
    record = await registry.create(None, draft())
    registry.listeners.append(heard.append)
    house.shelf.put(record, secrets=(meta("token"),))
    await registry.refresh()
    assert heard == [record.data_source_id]


async def test_what_was_missed_while_the_bus_was_deaf_is_read_once_it_hears(house: House) -> None:
    async with house.running(house.registry()) as registry:
        record = await registry.create(None, draft())
        # Its own announcement is read first: a late read of that would find the change by chance.
        await until(lambda: bool(house.shelf.reads) and not registry._heard and not registry._turn.locked())
        house.wire.break_off()
        await until(lambda: not registry.hearing)
        house.shelf.put(record, description="missed")
        house.wire.cut = False
        await until(lambda: registry.named(None, "score").record.description == "missed")


async def test_without_the_bus_a_change_is_found_by_age(house: House) -> None:
    house.wire.cut = True
    registry = house.registry(clock=asyncio.get_running_loop().time, max_age=0.02)
    async with house.running(registry):
        record = await registry.create(None, draft())
        house.shelf.put(record, description="missed")
        await until(lambda: registry.named(None, "score").record.description == "missed")
    assert {what for what, _ in house.failures} == {"bus"}, "the change is made, whoever hears of it"


async def test_news_that_never_end_do_not_keep_the_comparison_from_being_made(house: House) -> None:
    async with house.running(house.registry(max_age=5.0)) as registry:
        house.clock = 100.0
        compared = house.shelf.compared
        while house.shelf.compared == compared:
            registry.changed(uuid.uuid4())
            await asyncio.sleep(0)
        await until(lambda: registry.age() == 0)


async def test_a_database_that_was_down_is_compared_with_as_soon_as_it_answers(house: House) -> None:
    async with house.running(house.registry()) as registry:
        record = await registry.create(None, draft())
        await until(lambda: not registry._heard)
        house.shelf.down = True
        registry.changed(record.data_source_id)
        await until(lambda: len(house.failures) == 1)
        house.shelf.put(record, description="new")
        assert registry.named(None, "score").record.description is None
        house.shelf.down = False
        await until(lambda: registry.named(None, "score").record.description == "new")
    assert [what for what, _ in house.failures] == ["registry"], "an outage is told of once"


async def test_who_was_overtaken_tries_again_on_what_is_there_by_then(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.meanwhile = [lambda: house.shelf.put(house.shelf.rows[record.data_source_id], secrets=(meta("token"),))] * 3
    changed = await registry.update(None, record.data_source_id, draft("score", {"method": "POST"}))
    assert changed.revision == record.revision + 4
    assert [secret.name for secret in changed.secrets] == ["token"], "nobody's change is lost"
    assert registry.named(None, "score").env.keys() == {"token"}


async def test_a_draft_that_is_published_while_it_is_removed_is_archived(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.meanwhile = [lambda: house.shelf.put(record, status="PUBLISHED") and None]
    assert (await registry.remove(None, record.data_source_id)).status == "ARCHIVED"
    assert house.shelf.rows[record.data_source_id].status == "ARCHIVED"


async def test_a_rule_is_asked_again_of_what_is_there_by_then(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.meanwhile = [lambda: house.shelf.put(record, status="PUBLISHED") and None]
    await refused("INVALID_DATA_SOURCE", registry.update(None, record.data_source_id, draft("score", {"method": "POST"})))
    assert house.shelf.rows[record.data_source_id].source == {"url": URL}


async def test_who_is_overtaken_for_ever_gives_up(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.meanwhile = [lambda: house.shelf.put(house.shelf.rows[record.data_source_id]) and None] * 1000
    await refused("STORAGE_UNAVAILABLE", registry.publish(None, record.data_source_id))


async def test_updates_at_once_from_two_processes_are_all_made(house: House) -> None:
    one, two = house.registry(), house.registry()
    record = await one.create(None, draft())
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            made = one if number % 2 else two
            group.create_task(made.update(None, record.data_source_id, draft(description=str(number))))
    assert house.shelf.rows[record.data_source_id].generation == record.generation + 10


async def test_what_is_read_late_never_replaces_what_is_newer(registry: Registry, house: House) -> None:
    record = await registry.create(None, draft())
    house.shelf.put(record, description="read")
    arrives = asyncio.Event()
    house.shelf.late.append(arrives)
    async with asyncio.TaskGroup() as group:
        group.create_task(registry.refresh())
        await until(lambda: not house.shelf.late)
        group.create_task(registry.remove(None, record.data_source_id))
        for _ in range(100):  # turns in which the removal would be over, did it not wait for the reading
            await asyncio.sleep(0)
        arrives.set()
    assert house.shelf.rows == {}
    unknown(registry, "score")


async def test_others_have_their_turn_while_many_sources_are_compiled(
    registry: Registry, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await registry.create(None, draft())
    for number in range(1000):
        other = msgspec.structs.replace(first, data_source_id=uuid.UUID(int=10_000 + number), name=f"source {number}")
        house.shelf.rows[other.data_source_id] = other
    compiled, loaded, longest, compile_one = 0, False, 0, snapshot.compiled

    def counted(record: SourceRecord) -> Any:
        nonlocal compiled
        compiled += 1
        return compile_one(record)

    async def watch() -> None:
        nonlocal longest
        while not loaded:
            before = compiled
            await asyncio.sleep(0)
            longest = max(longest, compiled - before)

    monkeypatch.setattr(snapshot, "compiled", counted)
    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        await registry.refresh()
        loaded = True
    assert len(registry) == 1001
    assert compiled == 1000, "each once, and none that was known"
    assert longest <= 20
