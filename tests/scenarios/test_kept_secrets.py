"""Secrets that the registry keeps: used at the last moment, everywhere the newest at once, counted, audited, told to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from broker_edge.api.ops import Prober
from broker_edge.backends.key_file import NAME
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.backends.tables import metadata
from broker_edge.errors import CallerError
from broker_edge.flow.rotation import rotate
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.settings import Settings, SettingsError
from tests.edges import Answer, Bureau, EdgeProcess, InProcess, edge_process, in_process, request, settings, spec, table
from tests.oauth import Authority
from tests.scenarios.herds import PATIENCE, fleet, until
from tests.scenarios.test_by_name import asked, registered, set_variables
from tests.servers import Postgres, Valkey, valkey

OLD, NEW = "old-canary-4711", "new-canary-0815"
HEADER = {"X-Key": "{{ env.key }}"}


@pytest.fixture
async def edge(backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends.model_copy(update={"allowed_private_hosts": ("127.0.0.1",), "near_tier_bytes": 0})) as edge:
        await until(lambda: edge.edge.registry.hearing)
        yield edge


@pytest.fixture
def own_redis() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture
async def pair(tmp_path: Path, bureau: Bureau, own_redis: Valkey, postgres_server: Postgres) -> AsyncIterator[list[InProcess]]:
    """Two instances with one key."""
    chosen = {"encryption_keys": new_entry("a"), "near_tier_bytes": 0, "allowed_private_hosts": "127.0.0.1"}
    async with fleet(2, tmp_path, bureau, own_redis, postgres_server.create(migrated=True), **chosen) as edges:
        for edge in edges:
            await until(lambda edge=edge: edge.edge.registry.hearing)  # type: ignore[misc]
        yield edges


@pytest.fixture
async def oauth() -> AsyncIterator[Authority]:
    async with Authority().running() as running:
        yield running


async def keyed(edge: InProcess, url: str) -> dict[str, Any]:
    """A source of that URL with a secret in a header."""
    record = await registered(edge, {"url": f"{url}/{{{{ id }}}}", "headers": HEADER, "response_type": "JSON"})
    await set_variables(edge, record, key=OLD)
    return record


async def set_credentials(edge: InProcess, record: Any, **values: str) -> None:
    body = [{"credential_type": name, "value": value} for name, value in values.items()]
    answer = await edge.put(f"/data-sources/{record['data_source_id']}/credentials", body)
    assert answer.status == 200, answer.body


async def good(edge: InProcess, record: Any, number: int) -> Answer:
    answer = await asked(edge, record, {"id": number})
    assert answer.status == 200, answer.body
    return answer


def knows_key(edge: InProcess, record: Any) -> bool:
    with contextlib.suppress(CallerError):
        return "key" in edge.edge.registry.named(None, record["name"]).env
    return False


async def test_a_secret_rotated_in_the_middle_of_a_run_is_used_at_once_by_every_instance(
    pair: list[InProcess], bureau: Bureau
) -> None:
    record = await keyed(pair[0], bureau.url)
    await until(lambda: knows_key(pair[1], record))
    told = asyncio.Event()
    numbers = iter(range(1_000_000))
    ended = False

    def heard(data_source_id: uuid.UUID | None) -> None:
        if str(data_source_id) == record["data_source_id"]:
            told.set()

    async def run(edge: InProcess) -> None:
        while not ended:
            await good(edge, record, next(numbers))

    async with asyncio.TaskGroup() as group:
        for edge in pair:
            group.create_task(run(edge))
        await until(lambda: len(bureau.calls) > 20)
        pair[1].edge.registry.listeners.append(heard)
        await set_variables(pair[0], record, key=NEW)
        async with asyncio.timeout(PATIENCE):
            await told.wait()
        since = len(bureau.calls)
        await until(lambda: len(bureau.calls) > since + 20)
        ended = True
    keys = [call.get("x-key") for call in bureau.calls]
    assert keys[0] == OLD
    assert set(keys[since + len(pair) :]) == {NEW}  # but for what was on its way to the bureau


async def test_a_paid_answer_stays_usable_when_a_secret_changes(edge: InProcess, bureau: Bureau) -> None:
    record = await keyed(edge, bureau.url)
    await good(edge, record, 1)
    await set_variables(edge, record, key=NEW)
    assert (await good(edge, record, 1)).json()["origin"] == "CACHE"
    await good(edge, record, 2)
    assert [call.get("x-key") for call in bureau.calls] == [OLD, NEW]


async def test_references_of_inline_specs_resolve_here(edge: InProcess, bureau: Bureau) -> None:
    record = await keyed(edge, bureau.url)
    refs = {"token": {"data_source_id": record["data_source_id"], "var_name": "key"}}
    source = spec(f"{bureau.url}/{{{{ id }}}}", headers={"Authorization": "Bearer {{ token }}"})
    for number, value in enumerate((OLD, NEW)):
        await set_variables(edge, record, key=value)
        answer = await edge.post(request(source, {"id": number}, credential_refs=refs))
        assert answer.status == 200, answer.body
    assert [call.get("authorization") for call in bureau.calls] == [f"Bearer {OLD}", f"Bearer {NEW}"]


async def test_kept_credentials_prove_who_we_are(edge: InProcess, bureau: Bureau) -> None:
    record = await registered(edge, {"url": bureau.url, "response_type": "JSON", "auth": {"method": "basic"}})
    answer = await asked(edge, record)
    assert answer.json()["error"]["code"] == "MISSING_VARIABLE"
    assert "CLIENT_ID" in answer.json()["error"]["message"]
    await set_credentials(edge, record, CLIENT_ID="me", CLIENT_SECRET=OLD)
    assert (await asked(edge, record)).status == 200
    assert bureau.calls[0].get("authorization") == f"Basic {b64encode(f'me:{OLD}'.encode()).decode()}"


async def test_every_use_is_counted_by_version_and_every_read_written_down(edge: InProcess, bureau: Bureau) -> None:
    record = await keyed(edge, bureau.url)
    for number in range(3):
        await good(edge, record, number)
    await set_variables(edge, record, key=NEW)
    last = await good(edge, record, 3)
    await good(edge, record, 3)  # a hit uses nothing
    await edge.edge.secrets.flush()
    uses = {row.version: row.uses for row in await table(edge.edge.engine, "secret_use")}
    assert uses == {1: 3, 2: 1}
    read = [row for row in await table(edge.edge.engine, "secret_access") if row.purpose == "fetch"]
    assert {(row.name, row.version) for row in read} == {("key", 1), ("key", 2)}
    rows = {str(row.run_id): row.trace_id for row in await edge.rows()}
    assert {str(row.run_id) for row in read} <= rows.keys()
    assert all(row.trace_id == rows[str(row.run_id)] for row in read)
    assert last.json()["origin"] == "REQUEST"


async def test_only_what_a_request_needs_is_revealed(edge: InProcess, bureau: Bureau) -> None:
    record = await keyed(edge, bureau.url)
    await set_variables(edge, record, key=OLD, other="unused", id="overridden")
    await good(edge, record, 1)
    await edge.edge.secrets.flush()
    metas = {row.data_source_env_var_id: row.name for row in await table(edge.edge.engine, "data_source_env_var")}
    assert [metas[row.secret_id] for row in await table(edge.edge.engine, "secret_use")] == ["key"]


async def test_a_database_that_can_not_be_read_gives_no_secret_and_no_call(edge: InProcess, bureau: Bureau) -> None:
    record = await keyed(edge, bureau.url)
    edge.edge.secrets.forget(None)
    store = edge.edge.secrets._store

    async def broken(*_: Any) -> Any:
        raise TimeoutError

    store.read = broken  # type: ignore[method-assign]
    assert (await asked(edge, record, {"id": 1})).json()["error"]["code"] == "STORAGE_UNAVAILABLE"
    assert bureau.calls == []


async def test_secrets_sealed_with_a_key_that_is_gone_are_no_secrets(backends: Settings, bureau: Bureau) -> None:
    async with in_process(backends.model_copy(update={"encryption_keys": None})) as edge:
        record = await keyed(edge, bureau.url)
    (backends.data_dir / NAME).unlink()
    async with in_process(backends) as edge:
        answer = await asked(edge, record, {"id": 1})
        assert answer.json()["error"]["code"] == "INTERNAL"
        assert bureau.calls == []
        await set_variables(edge, record, key=NEW)
        await good(edge, record, 2)
    assert bureau.calls[0].get("x-key") == NEW


# Refresh tokens that the registry keeps


async def refreshing(edge: InProcess, oauth: Authority) -> dict[str, Any]:
    source = {"url": f"{oauth.url}/data/{{{{ id }}}}", "response_type": "JSON", "auth": oauth.auth(grant_type="refresh_token")}
    record = await registered(edge, source)
    await set_credentials(edge, record, CLIENT_ID="me", CLIENT_SECRET=OLD, REFRESH_TOKEN="refresh-0")
    return record


async def test_a_new_refresh_token_takes_the_place_of_the_kept_one(
    pair: list[InProcess], oauth: Authority, own_redis: Valkey
) -> None:
    oauth.single_use = True
    record = await refreshing(pair[0], oauth)
    for number in range(4):
        await until(lambda: pair[1].edge.registry._snapshot.revisions == pair[0].edge.registry._snapshot.revisions)
        await good(pair[number % 2], record, number)
    assert len(oauth.asked) == 1  # the token that came with it is found under the new one too
    async with Redis.from_url(own_redis.url) as redis:
        await redis.flushall()
    for number in range(4, 8):
        await good(pair[number % 2], record, number)
    assert ([form["refresh_token"] for form in oauth.asked], oauth.replayed) == (["refresh-0", "refresh-1"], 0)


async def test_a_refresh_token_set_by_hand_is_not_overwritten(edge: InProcess, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    record = await refreshing(edge, oauth)
    oauth.gate.clear()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asked(edge, record, {"id": 1}))
        await oauth.arrived.wait()
        await set_credentials(edge, record, REFRESH_TOKEN="by-hand")
        oauth.gate.set()
    assert task.result().status == 200
    oauth.refresh = "by-hand"
    assert (await asked(edge, record, {"id": 2})).status == 200
    assert [form["refresh_token"] for form in oauth.asked] == ["refresh-0", "by-hand"]


# Nobody is told


async def test_no_table_and_no_entry_holds_a_kept_secret(pair: list[InProcess], bureau: Bureau, own_redis: Valkey) -> None:
    edge = pair[0]
    record = await keyed(edge, bureau.url)
    await set_credentials(edge, record, CLIENT_SECRET=NEW)
    await good(edge, record, 1)
    await edge.edge.secrets.flush()
    await edge.rows()
    async with edge.edge.engine.connect() as connection:
        kept = [repr(list(await connection.execute(sa.select(one)))) for one in metadata.sorted_tables]
    assert len(kept) > 8
    async with Redis.from_url(own_redis.url) as redis:
        keys = await redis.keys("*")
        kept += [repr(await redis.get(key)) for key in keys if await redis.type(key) == b"string"]
    assert "v1.a." in "".join(kept)
    for secret in (OLD, NEW):
        for form in (secret, b64encode(secret.encode()).decode()[:-4], secret.encode().hex()):
            assert form not in "".join(kept)


# Keys that lack


async def test_an_edge_that_starts_with_another_key_says_so_and_is_degraded(
    tmp_path: Path, bureau: Bureau, postgres_server: Postgres
) -> None:
    values = {"database_url": postgres_server.create(migrated=True), "allowed_private_hosts": f"127.0.0.1:{bureau.port}"}
    async with in_process(settings(tmp_path / "a", **values, encryption_keys=new_entry("old"))) as edge:
        record = await keyed(edge, bureau.url)
    with edge_process(
        tmp_path / "b", bureau.port, database_url=values["database_url"], encryption_keys=new_entry("new")
    ) as other:
        await other.ready()
        [line] = lines(other, "sealed with a key that is not in force")
        assert (line["level"], line["key"], line["secrets"]) == ("error", "old", 1)
        async with httpx.AsyncClient(base_url=other.url, trust_env=False) as client:
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            assert ready.json()["dependencies"]["vault"] == {"status": "degraded", "kind": "key-ring"}
            asking = {"data_source_name": record["name"], "configured_params": {"id": 1}, "run_id": str(uuid.uuid4())}
            error = (await client.post("/internal/data-broker", json=asking)).json()["error"]
    assert error["code"] == "INTERNAL"
    assert error["message"] == "a secret is sealed with key old, which is not among the keys in force"


async def test_a_running_edge_notices_that_secrets_were_moved_under_a_key_that_it_has_not(
    edge: InProcess, bureau: Bureau
) -> None:
    record = await keyed(edge, bureau.url)
    assert (await edge.get("/readyz")).json()["dependencies"]["vault"]["status"] == "ok"
    mine = (edge.edge.settings.data_dir / NAME).read_text().strip()
    assert (await rotate(SqlSecrets(edge.edge.engine), Vault(KeyRing.parse(f"{new_entry('next')},{mine}")))).resealed == 1
    edge.edge.secrets.forget(None)
    error = (await asked(edge, record, {"id": 1})).json()["error"]
    assert "sealed with key next, which is not among the keys in force" in error["message"]
    report = await Prober(probes_of(edge)).report()
    assert (report.status, report.dependencies["vault"].status) == ("degraded", "degraded")


def probes_of(edge: InProcess) -> Any:
    """Those of the edge, asked without what its prober remembers for a second."""
    return edge.edge.prober._probes


# The key of the embedded default


def lines(edge: EdgeProcess, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in edge.log.splitlines() if line.startswith("{")]
    return [line for line in found if event in line["event"]]


def key_files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if NAME in path.name]


async def test_the_embedded_default_makes_a_key_once_and_says_so(tmp_path: Path, bureau: Bureau) -> None:
    with edge_process(tmp_path, bureau.port) as edge:
        await edge.ready()
        assert [line["file"] for line in lines(edge, "an encryption key was made")] == [NAME]
        assert lines(edge, "DATA_DIR alone") == []
        made = (tmp_path / NAME).read_bytes()
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
        assert await asyncio.to_thread(edge.stop) == 0
        edge.start()
        await edge.ready()
        assert len(lines(edge, "an encryption key was made")) == 1
        assert (tmp_path / NAME).read_bytes() == made
        assert made.strip().partition(b":")[2].decode() not in edge.log


async def test_workers_that_start_at_once_agree_on_one_key_and_warn_of_others(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    values = {"redis_url": redis_server.url, "database_url": postgres_server.create(migrated=True), "workers": "3"}
    with edge_process(tmp_path, bureau.port, **values) as edge:
        await edge.ready()
        await until(lambda: len(lines(edge, "in DATA_DIR alone")) == 3)
        assert [line["level"] for line in lines(edge, "in DATA_DIR alone")] == ["warning"] * 3
        assert {line["setting"] for line in lines(edge, "in DATA_DIR alone")} == {"DATA_BROKER_ENCRYPTION_KEYS"}
        assert key_files(tmp_path) == [NAME]


async def test_with_a_key_of_its_own_nothing_is_made_or_warned_of(
    tmp_path: Path, bureau: Bureau, postgres_server: Postgres
) -> None:
    values = {"database_url": postgres_server.create(migrated=True), "encryption_keys": new_entry("a")}
    with edge_process(tmp_path, bureau.port, **values) as edge:
        await edge.ready()
        assert lines(edge, "key") == []
        assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("text", "mode", "words"), [("a:" + "A" * 43 + "=", 0o640, "chmod 600"), ("nonsense", 0o600, "entry 1 must be")]
)
async def test_a_key_file_that_can_not_be_used_is_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    (tmp_path / NAME).write_text(text)
    (tmp_path / NAME).chmod(mode)
    with pytest.raises(SettingsError, match=words) as caught:
        async with in_process(settings(tmp_path)):
            pass
    assert str(tmp_path) not in str(caught.value)
