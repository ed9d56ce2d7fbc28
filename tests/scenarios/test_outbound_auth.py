"""Who the edge is to upstreams: what arrives there, how often a token is asked for, and where no secret ever stands."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from redis.asyncio import Redis

from broker_edge.guard.vault import new_entry
from broker_edge.settings import Settings
from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, json_reply, request, settings, spec, table
from tests.oauth import Authority
from tests.scenarios.herds import fleet, until
from tests.servers import Postgres, Valkey, valkey
from tests.upstreams import RawServer, Received, answering, authority, ca_pem, replying, server_context

CLIENT = {"CLIENT_ID": "me", "CLIENT_SECRET": "client-secret-canary"}
USER = {"USERNAME": "user", "PASSWORD": "password-canary"}


@pytest.fixture
async def oauth() -> AsyncIterator[Authority]:
    async with Authority().running() as running:
        yield running


@pytest.fixture
async def edge(backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends.model_copy(update={"allowed_private_hosts": ("127.0.0.1",), "near_tier_bytes": 0})) as running:
        if backends.redis_url is not None:
            await running.edge.fleet.hearing.wait()  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def own_redis() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


async def fetch(edge: InProcess, url: str, auth: Any, env: Any, **members: Any) -> Answer:
    return await edge.post(request(spec(url, auth=auth, **members), env_variables=env))


async def ok(edge: InProcess, url: str, auth: Any, env: Any, **members: Any) -> Answer:
    answer = await fetch(edge, url, auth, env, **members)
    assert answer.status == 200, answer.body
    return answer


async def refused(edge: InProcess, url: str, auth: Any, env: Any, **members: Any) -> tuple[str, str]:
    error = (await fetch(edge, url, auth, env, **members)).json()["error"]
    return error["code"], error["message"]


def data(oauth: Authority, **auth: Any) -> dict[str, Any]:
    """A source of the upstream that takes tokens."""
    return spec(f"{oauth.url}/data/{{{{ id }}}}", auth=oauth.auth(**auth))


async def ask(edge: InProcess, source: dict[str, Any], number: int = 0, env: Any = None, **members: Any) -> Answer:
    return await edge.post(request(source, {"id": number}, env_variables=CLIENT if env is None else env, **members))


# Basic


@pytest.mark.parametrize(
    ("env", "pair"),
    [
        (CLIENT, "me:client-secret-canary"),
        (USER, "user:password-canary"),
        (CLIENT | USER, "me:client-secret-canary"),
        ({"USERNAME": "m\u00fcller", "PASSWORD": "p:\u00e4\u00df"}, "m\u00fcller:p:\u00e4\u00df"),
        ({"CLIENT_ID": "me", "CLIENT_SECRET": ""}, "me:"),
    ],
)
async def test_basic(edge: InProcess, bureau: Bureau, env: Any, pair: str) -> None:
    await ok(edge, bureau.url, {"method": "basic"}, env)
    expected = base64.b64encode(pair.encode()).decode()
    assert bureau.calls[0].get("authorization") == f"Basic {expected}"


async def test_auth_goes_before_a_header_of_the_spec(edge: InProcess, bureau: Bureau) -> None:
    await ok(edge, bureau.url, {"method": "basic"}, CLIENT, headers={"authorization": "Bearer of the spec"})
    given = [value for name, value in bureau.calls[0].headers if name.lower() == "authorization"]
    assert given == [f"Basic {base64.b64encode(b'me:client-secret-canary').decode()}"]


@pytest.mark.parametrize(
    ("auth", "env", "code", "words"),
    [
        ({"method": "basic"}, {"CLIENT_ID": "a:b", "CLIENT_SECRET": "x"}, "INVALID_VALUE", "CLIENT_ID can't be used: a colon"),
        ({"method": "basic"}, {"USERNAME": "a:b", "PASSWORD": "x"}, "INVALID_VALUE", "USERNAME can't be used: a colon"),
        ({"method": "basic"}, {"CLIENT_ID": "a", "CLIENT_SECRET": "x\r\ny"}, "INVALID_VALUE", "CLIENT_SECRET"),
        (
            {"method": "basic"},
            {"CLIENT_ID": "a", "CLIENT_SECRET": 7},
            "INVALID_VALUE",
            "CLIENT_SECRET can't be used: it is no text",
        ),
        ({"method": "basic"}, {"CLIENT_ID": "", "CLIENT_SECRET": "x"}, "INVALID_VALUE", "CLIENT_ID can't be used: it is empty"),
        ({"method": "basic"}, {"CLIENT_ID": "a"}, "MISSING_VARIABLE", "CLIENT_SECRET"),
        ({"method": "basic"}, {"CLIENT_ID": "a", "CLIENT_SECRET": None}, "MISSING_VARIABLE", "CLIENT_SECRET"),
        ({"method": "api_key", "name": "X-Key"}, {"API_KEY": "a\r\nX: y"}, "INVALID_VALUE", "API_KEY can't be used: a header"),
        ({"method": "api_key", "name": "X-Key"}, {"API_KEY": "\u00fc"}, "INVALID_VALUE", "API_KEY"),
        ({"method": "api_key", "name": "X-Key"}, {"API_KEY": "key\n"}, "INVALID_VALUE", "API_KEY"),
        ({"method": "api_key", "name": "X-Key"}, {"API_KEY": ["a"]}, "INVALID_VALUE", "API_KEY"),
        ({"method": "api_key", "name": "key", "in": "query"}, {"API_KEY": "x" * 70_000}, "INVALID_VALUE", "API_KEY"),
        ({"method": "mtls"}, {"CLIENT_CERTIFICATE": "x", "CLIENT_KEY": "y"}, "INVALID_VALUE", "CLIENT_CERTIFICATE"),
        ({"method": "mtls"}, {"CLIENT_CERTIFICATE": "x"}, "MISSING_VARIABLE", "CLIENT_KEY"),
    ],
)
async def test_a_credential_that_can_not_be_used_is_named_and_nothing_is_sent(
    edge: InProcess, bureau: Bureau, auth: Any, env: Any, code: str, words: str
) -> None:
    got, message = await refused(edge, bureau.url, auth, env)
    assert got == code
    assert words in message
    assert bureau.calls == []


# API keys


@pytest.mark.parametrize("env", [{"API_KEY": "key-canary"}, {"CLIENT_SECRET": "key-canary"}])
async def test_an_api_key_in_a_header(edge: InProcess, bureau: Bureau, env: Any) -> None:
    await ok(edge, bureau.url, {"method": "api_key", "name": "X-Api-Key"}, env, headers={"x-api-key": "of the spec"})
    assert [value for name, value in bureau.calls[0].headers if name.lower() == "x-api-key"] == ["key-canary"]


async def test_an_api_key_in_the_query(edge: InProcess, bureau: Bureau) -> None:
    auth = {"method": "api_key", "in": "query", "name": "key"}
    await ok(edge, f"{bureau.url}/a?b=1&key=spec", auth, {"API_KEY": "k&x=1 \u00fc"}, params={"c": 2})
    pairs = parse_qsl(urlsplit(bureau.calls[0].line.split()[1]).query)
    assert pairs == [("b", "1"), ("c", "2"), ("key", "k&x=1 \u00fc")]


@pytest.mark.parametrize("name", ["Host", "content-length", "Connection", "Proxy-Authorization"])
async def test_a_key_can_not_stand_in_a_header_of_the_edge(edge: InProcess, bureau: Bureau, name: str) -> None:
    code, message = await refused(edge, bureau.url, {"method": "api_key", "name": name}, {"API_KEY": "x"})
    assert (code, "source.auth.name" in message) == ("INVALID_DATA_SOURCE", True)


# Redirects


@pytest.mark.parametrize(
    ("auth", "env"),
    [
        ({"method": "basic"}, CLIENT),
        ({"method": "api_key", "name": "X-Key"}, {"API_KEY": "key-canary"}),
        ({"method": "api_key", "name": "Accept-Language"}, {"API_KEY": "key-canary"}),
        ({"method": "api_key", "name": "key", "in": "query"}, {"API_KEY": "key-canary"}),
    ],
)
async def test_no_proof_goes_to_another_origin(edge: InProcess, bureau: Bureau, auth: Any, env: Any) -> None:
    def away(got: Received) -> bytes:
        query = urlsplit(got.line.split()[1]).query  # as upstreams do that send the whole query on
        return http_reply(b"", 302, f"Location: {bureau.url}/there?{query}&a=1")

    async with Bureau(away).running() as first:
        await ok(edge, f"{first.url}/here", auth, env)
    assert b"canary" in first.calls[0].head or first.calls[0].get("authorization")
    assert b"canary" not in bureau.calls[0].head
    assert bureau.calls[0].get("authorization") is None
    assert bureau.calls[0].line.split()[1].endswith("a=1")


async def test_no_header_that_a_variable_filled_goes_to_another_origin(edge: InProcess, bureau: Bureau) -> None:
    headers = {"Accept": "text/plain; q={{ env.key }}", "Accept-Language": "de", "User-Agent": {"env": "key"}}
    async with Bureau(lambda _: http_reply(b"", 302, f"Location: {bureau.url}/there")).running() as first:
        await ok(edge, f"{first.url}/here", None, {"key": "key-canary"}, headers=headers)
    assert first.calls[0].head.count(b"key-canary") == 2
    assert b"key-canary" not in bureau.calls[0].head
    assert bureau.calls[0].get("accept-language") == "de"


async def test_a_redirect_within_the_origin_keeps_the_proof(edge: InProcess, oauth: Authority) -> None:
    def home(got: Received) -> bytes:
        if "/start" in got.line:
            return http_reply(b"", 302, "Location: /there")
        return json_reply({"auth": got.get("authorization")})

    async with Bureau(home).running() as bureau:
        answer = await ok(edge, f"{bureau.url}/start", {"method": "basic"}, USER)
    assert answer.json()["value"]["auth"].startswith("Basic ")


# Tokens


@pytest.mark.parametrize("client_auth", ["basic", "post"])
async def test_client_credentials(edge: InProcess, oauth: Authority, client_auth: str) -> None:
    env = {"CLIENT_ID": "m:e +\u00fc", "CLIENT_SECRET": "s&=%:"}
    answer = await ask(edge, data(oauth, scope="read write", client_auth=client_auth), env=env)
    assert answer.status == 200, answer.body
    [form] = oauth.asked
    names = ("basic_id", "basic_secret") if client_auth == "basic" else ("client_id", "client_secret")
    assert form == {"grant_type": "client_credentials", "scope": "read write", **dict(zip(names, env.values(), strict=True))}
    asking = oauth.requests[0]
    assert asking.line.startswith("POST /token ")
    assert asking.get("content-type") == "application/x-www-form-urlencoded"
    assert (
        oauth.served[0].get(
            "authorization",
        )
        == f"Bearer {next(iter(oauth.good))}"
    )


async def test_the_password_grant(edge: InProcess, oauth: Authority) -> None:
    assert (await ask(edge, data(oauth, grant_type="password"), env=CLIENT | USER)).status == 200
    form = oauth.asked[0]
    assert (form["grant_type"], form["username"], form["password"]) == ("password", "user", "password-canary")
    assert (form["basic_id"], form["basic_secret"]) == ("me", "client-secret-canary")


async def test_a_token_serves_until_a_minute_before_it_expires(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth)
    for number in range(5):
        assert (await ask(edge, source, number)).status == 200
    assert (len(oauth.asked), len(oauth.served)) == (1, 5)


@pytest.mark.parametrize("expires_in", [60, 30, 0, -1, "x", True, [1]])
async def test_a_token_that_is_about_to_expire_serves_once(edge: InProcess, oauth: Authority, expires_in: Any) -> None:
    oauth.expires_in = expires_in
    source = data(oauth)
    for number in range(3):
        assert (await ask(edge, source, number)).status == 200
    assert len(oauth.asked) == 3


@pytest.mark.parametrize("expires_in", [None, "3600", 61.5, 10**30])
async def test_other_lifetimes_serve_too(edge: InProcess, oauth: Authority, expires_in: Any) -> None:
    oauth.expires_in = expires_in
    source = data(oauth)
    for number in range(2):
        assert (await ask(edge, source, number)).status == 200
    assert len(oauth.asked) == 1


async def test_a_hit_asks_for_no_token(edge: InProcess, oauth: Authority) -> None:
    oauth.expires_in = 0
    source = data(oauth)
    await ask(edge, source)
    oauth.answer = http_reply(b"", 500)
    answer = await ask(edge, source)
    assert (answer.json()["origin"], len(oauth.asked)) == ("CACHE", 1)


async def test_a_herd_of_misses_asks_for_one_token(edge: InProcess, oauth: Authority) -> None:
    oauth.gate.clear()
    source = data(oauth)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(edge, source, number)) for number in range(50)]
        await oauth.arrived.wait()
        oauth.gate.set()
    assert {task.result().status for task in tasks} == {200}
    assert (len(oauth.asked), len(oauth.served)) == (1, 50)


@pytest.mark.parametrize(
    "other",
    [
        lambda source: source | {"data_source_id": "550e8400-e29b-41d4-a716-446655440000"},
        lambda source: source | {"source": source["source"] | {"auth": source["source"]["auth"] | {"scope": "more"}}},
        lambda source: source | {"source": source["source"] | {"auth": source["source"]["auth"] | {"client_auth": "post"}}},
    ],
)
async def test_what_asks_otherwise_gets_a_token_of_its_own(edge: InProcess, oauth: Authority, other: Any) -> None:
    await ask(edge, data_source := data(oauth))
    await ask(edge, other(data_source), 1)
    assert len(oauth.asked) == 2


async def test_other_credentials_and_other_projects_get_tokens_of_their_own(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth)
    await ask(edge, source)
    await ask(edge, source, 1, CLIENT | {"CLIENT_SECRET": "rotated"})
    await ask(edge, source, 2, project_id="660f9511-f39c-42e5-b827-557766551111")
    assert len(oauth.asked) == 3


async def test_a_refused_token_is_fetched_anew_and_the_call_repeated_once(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth)
    assert (await ask(edge, source)).status == 200
    oauth.revoke()
    assert (await ask(edge, source, 1)).status == 200
    assert (len(oauth.asked), len(oauth.served)) == (2, 3)
    assert (await ask(edge, source, 2)).status == 200
    assert len(oauth.asked) == 2  # the new one is everybody's


async def test_a_token_that_is_refused_again_is_the_callers_news(edge: InProcess, oauth: Authority) -> None:
    oauth.answer = json_reply({"access_token": "bad", "expires_in": 3600})
    answer = (
        await ask(
            edge,
            data(
                oauth,
            ),
        )
    ).json()
    assert (answer["error"]["code"], answer["error"]["upstream_status"]) == ("UPSTREAM_STATUS", 401)
    assert (len(oauth.asked), len(oauth.served)) == (2, 2)


async def test_of_many_whose_token_is_refused_one_fetches_another(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth)
    await ask(edge, source)
    oauth.revoke()
    oauth.data_gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(edge, source, number)) for number in range(1, 21)]
        await until(lambda: len(oauth.served) == 21)
        oauth.data_gate.set()
    assert {task.result().status for task in tasks} == {200}
    assert len(oauth.asked) == 2


async def test_a_billable_call_is_repeated_after_401_too(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth) | {"billable": True, "cost_per_call": {"amount": "1.5", "currency": "EUR"}}
    await ask(edge, source)
    oauth.revoke()
    assert (await ask(edge, source, 1)).status == 200
    assert len(oauth.served) == 3


async def test_other_methods_repeat_nothing_after_401(edge: InProcess, oauth: Authority) -> None:
    code, _ = await refused(edge, f"{oauth.url}/data", {"method": "basic"}, CLIENT)
    assert (code, len(oauth.served)) == ("UPSTREAM_STATUS", 1)


# Failures of the token endpoint


@pytest.mark.parametrize(
    ("answer", "code", "status", "words"),
    [
        (json_reply({"error": "invalid_client", "error_description": "canary"}, 401), "UPSTREAM_STATUS", None, "answered 401"),
        (json_reply({"error": "invalid_grant"}, 400), "UPSTREAM_STATUS", None, "answered 400"),
        (http_reply(b"canary", 503), "UPSTREAM_STATUS", 503, "answered 503"),
        (http_reply(b"canary", 429, "Retry-After: 7"), "UPSTREAM_STATUS", 429, "answered 429"),
        (http_reply(b"<html>canary"), "PARSE_ERROR", None, "is no JSON object"),
        (http_reply(b'["canary"]'), "PARSE_ERROR", None, "is no JSON object"),
        (http_reply(b'{"access_token": "\xff"}'), "PARSE_ERROR", None, "is no JSON object"),
        (json_reply({"token": "canary"}), "PARSE_ERROR", None, "access_token"),
        (json_reply({"access_token": 7}), "PARSE_ERROR", None, "access_token"),
        (json_reply({"access_token": ""}), "PARSE_ERROR", None, "access_token"),
        (json_reply({"access_token": "canary", "token_type": "mac"}), "PARSE_ERROR", None, "token_type"),
        (http_reply(b"", 302, "Location: /other"), "UPSTREAM_STATUS", None, "redirects (302), which is not followed"),
        (json_reply({"access_token": "canary\r\nX-More: 1"}), "PARSE_ERROR", None, "access_token"),
    ],
)
async def test_a_failing_token_endpoint_is_named_and_not_quoted(
    edge: InProcess, oauth: Authority, answer: bytes, code: str, status: int | None, words: str
) -> None:
    oauth.answer = answer
    got = await ask(edge, data(oauth))
    error = got.json()["error"]
    assert (error["code"], error.get("upstream_status")) == (code, status)
    assert "token endpoint" in error["message"]
    assert words in error["message"]
    assert b"canary" not in got.body
    assert oauth.served == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_of_a_token_endpoint_is_followed(
    edge: InProcess, oauth: Authority, bureau: Bureau, status: int
) -> None:
    bureau._answer = lambda _: json_reply({"access_token": "of another origin", "token_type": "Bearer"})
    for place in (f"{bureau.url}/token", "/elsewhere"):
        oauth.answer = http_reply(b"", status, f"Location: {place}")
        error = (await ask(edge, data(oauth))).json()["error"]
        assert (error["code"], error["retryable"]) == ("UPSTREAM_STATUS", False)
        assert f"the token endpoint redirects ({status})" in error["message"]
    assert (len(oauth.asked), oauth.served, bureau.calls) == (2, [], [])


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_token_endpoint_is_not_remembered_as_the_data_s_own_answer(
    edge: InProcess, oauth: Authority, status: int
) -> None:
    source = data(oauth)
    source["caching"]["negative_ttl"] = {str(status): 100}
    oauth.answer = http_reply(b"", status)
    assert (await ask(edge, source)).json()["error"]["upstream_status"] == status
    oauth.answer = None
    answer = await ask(edge, source)
    assert (answer.status, answer.json()["origin"]) == (200, "REQUEST")


async def test_a_failing_token_endpoint_is_excused_as_stale_if_error_says(edge: InProcess, oauth: Authority) -> None:
    oauth.expires_in = 0
    source = data(oauth)
    source["caching"] = {"enabled": True, "ttl": 0.001, "stale_if_error": 1000}
    first = await ask(edge, source)
    assert first.status == 200
    oauth.answer = http_reply(b"", 503)

    async def stale() -> bool:
        answer = await ask(edge, source)
        return (
            answer.status == 200 and answer.json()["data_object_id"] == first.json()["data_object_id"] and len(oauth.asked) == 2
        )

    await until(stale)


async def test_a_token_endpoint_that_is_not_there_is_named(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth, token_url="http://127.0.0.1:9/token")
    error = (await ask(edge, source)).json()["error"]
    assert error["code"] == "CONNECT_ERROR"
    assert "token endpoint" in error["message"]


async def test_a_token_endpoint_has_the_time_of_the_fetch(edge: InProcess, oauth: Authority) -> None:
    oauth.gate.clear()
    source = data(oauth)
    source["source"]["timeout"] = 0.3
    assert (await ask(edge, source)).json()["error"]["code"] == "TIMEOUT"
    oauth.gate.set()


async def test_the_address_guard_holds_for_token_endpoints(tmp_path: Path, bureau: Bureau, oauth: Authority) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        error = (await fetch(edge, bureau.url, oauth.auth(), CLIENT)).json()["error"]
    assert (error["code"], "token endpoint" in error["message"]) == ("TARGET_DENIED", True)
    assert oauth.requests == []


async def test_a_caller_who_leaves_takes_no_token_along(edge: InProcess, oauth: Authority) -> None:
    source = data(oauth)
    hasty = json.loads(json.dumps(source))
    hasty["source"]["timeout"] = 0.3
    oauth.gate.clear()
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(ask(edge, hasty))
        await oauth.arrived.wait()
        staying = group.create_task(ask(edge, source, 1))
        assert (await leaving).json()["error"]["code"] == "TIMEOUT"
        oauth.gate.set()
    assert staying.result().status == 200


# Refresh tokens


REFRESH = CLIENT | {"REFRESH_TOKEN": "refresh-0"}


async def test_a_refresh_token_that_lasts(edge: InProcess, oauth: Authority) -> None:
    oauth.expires_in = 0
    source = data(oauth, grant_type="refresh_token")
    for number in range(3):
        assert (await ask(edge, source, number, REFRESH)).status == 200
    assert [form["refresh_token"] for form in oauth.asked] == ["refresh-0"] * 3


async def test_a_single_use_refresh_token_is_followed_by_its_successors(edge: InProcess, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    for number in range(12):
        assert (await ask(edge, source, number, REFRESH)).status == 200, number
    assert len({form["refresh_token"] for form in oauth.asked}) == 12
    assert oauth.replayed == 0


async def test_a_single_use_refresh_token_is_never_used_twice_at_once(edge: InProcess, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    sources = [data(oauth, grant_type="refresh_token", scope=scope) for scope in ("a", "b", "c")]
    for source in sources:
        source["data_source_id"] = sources[0]["data_source_id"]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(edge, source, number, REFRESH)) for source in sources for number in range(5)]
    assert {task.result().status for task in tasks} == {200}
    assert oauth.replayed == 0


async def test_another_configured_refresh_token_is_used_at_once(edge: InProcess, oauth: Authority) -> None:
    oauth.single_use = True
    source = data(oauth, grant_type="refresh_token")
    await ask(edge, source, 0, REFRESH)
    oauth.refresh = "another"
    oauth.revoke()
    assert (await ask(edge, source, 1, CLIENT | {"REFRESH_TOKEN": "another"})).status == 200
    assert oauth.replayed == 0


# The fleet


@pytest.fixture
def hire(tmp_path: Path, bureau: Bureau, own_redis: Valkey, postgres_server: Postgres) -> Any:
    """So many instances over one Redis and one database, with one key."""
    entry = new_entry("a")

    def hired(size: int, **values: Any) -> AbstractAsyncContextManager[list[InProcess]]:
        chosen = {"encryption_keys": entry, "allowed_private_hosts": "127.0.0.1", "near_tier_bytes": 0, **values}
        return fleet(size, tmp_path, bureau, own_redis, postgres_server.create(migrated=True), **chosen)

    return hired


async def test_two_instances_share_one_token(hire: Any, oauth: Authority) -> None:
    source = data(oauth)
    async with hire(2) as edges:
        oauth.gate.clear()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(edges[number % 2], source, number)) for number in range(10)]
            await oauth.arrived.wait()
            oauth.gate.set()
        assert {task.result().status for task in tasks} == {200}
        assert len(oauth.asked) == 1
        oauth.revoke()
        assert (await ask(edges[0], source, 20)).status == 200
        assert (await ask(edges[1], source, 21)).status == 200
    assert len(oauth.asked) == 2


async def test_two_instances_never_spend_one_refresh_token_twice(hire: Any, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    async with hire(2) as edges:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(edges[number % 2], source, number, REFRESH)) for number in range(12)]
        assert {task.result().status for task in tasks} == {200}
    assert oauth.replayed == 0
    assert len(oauth.asked) > 1


async def test_without_redis_each_process_has_a_token_of_its_own(hire: Any, oauth: Authority, own_redis: Valkey) -> None:
    source = data(oauth)
    async with hire(2) as edges:
        own_redis.kill()
        for number in range(6):
            assert (await ask(edges[number % 2], source, number)).status == 200
    assert len(oauth.asked) == 2


async def test_without_redis_no_refresh_token_is_spent(hire: Any, oauth: Authority, own_redis: Valkey) -> None:
    source = data(oauth, grant_type="refresh_token")
    async with hire(1) as [edge]:
        own_redis.kill()
        error = (await ask(edge, source, 0, REFRESH)).json()["error"]
    assert (error["code"], oauth.asked) == ("STORAGE_UNAVAILABLE", [])


async def test_a_token_that_another_ring_sealed_is_none(hire: Any, oauth: Authority) -> None:
    source = data(oauth)
    entry = new_entry("a")
    async with hire(1, encryption_keys=f"{new_entry('b')},{entry}") as [edge]:
        await ask(edge, source)
    async with hire(1, encryption_keys=entry) as [edge]:
        assert (await ask(edge, source, 1)).status == 200
    assert len(oauth.asked) == 2


async def test_a_single_use_refresh_token_outlasts_a_rotation_of_the_keys(hire: Any, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    old, new = new_entry("old"), new_entry("new")
    for number, ring in enumerate((old, f"{old},{new}", f"{new},{old}", new)):
        async with hire(1, encryption_keys=ring) as [edge]:
            assert (await ask(edge, source, number, REFRESH)).status == 200
    assert (len(oauth.asked), oauth.replayed) == (4, 0)


async def test_the_successor_of_a_refresh_token_moves_under_the_first_key_where_there_is_no_other(
    hire: Any, oauth: Authority
) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    old, new = new_entry("old"), new_entry("new")
    async with hire(1, encryption_keys=old) as [edge]:
        await ask(edge, source, 0, REFRESH)
    async with hire(1, encryption_keys=f"{new},{old}") as [edge]:
        oauth.single_use = False
        assert (await ask(edge, source, 1, REFRESH)).status == 200
    async with hire(1, encryption_keys=new) as [edge]:
        assert (await ask(edge, source, 2, REFRESH)).status == 200
    assert oauth.replayed == 0


async def test_instances_amid_a_rotation_never_spend_one_refresh_token_twice(
    tmp_path: Path, bureau: Bureau, own_redis: Valkey, postgres_server: Postgres, oauth: Authority
) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    old, new = new_entry("old"), new_entry("new")
    url = postgres_server.create(migrated=True)
    common = {"near_tier_bytes": 0, "allowed_private_hosts": "127.0.0.1"}
    before = fleet(1, tmp_path / "a", bureau, own_redis, url, encryption_keys=f"{old},{new}", **common)
    after = fleet(1, tmp_path / "b", bureau, own_redis, url, encryption_keys=f"{new},{old}", **common)
    async with before as one, after as other:
        edges = [*one, *other]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(edges[number % 2], source, number, REFRESH)) for number in range(12)]
    assert {task.result().status for task in tasks} == {200}
    assert oauth.replayed == 0


async def test_a_spent_refresh_token_is_not_replayed_where_the_key_of_its_successor_is_gone(hire: Any, oauth: Authority) -> None:
    oauth.single_use, oauth.expires_in = True, 0
    source = data(oauth, grant_type="refresh_token")
    async with hire(1, encryption_keys=new_entry("old")) as [edge]:
        await ask(edge, source, 0, REFRESH)
    async with hire(1, encryption_keys=new_entry("new")) as [edge]:
        error = (await ask(edge, source, 1, REFRESH)).json()["error"]
        assert error["code"] == "INTERNAL"
        assert "is sealed with key old, which is not among the keys in force" in error["message"]
        assert (len(oauth.asked), oauth.replayed) == (1, 0)
        oauth.refresh = "another"
        assert (await ask(edge, source, 2, REFRESH | {"REFRESH_TOKEN": "another"})).status == 200


async def test_no_secret_and_no_token_stands_in_redis_or_the_database(hire: Any, oauth: Authority, own_redis: Valkey) -> None:
    oauth.single_use = True
    async with hire(1) as [edge]:
        await ask(edge, data(oauth))
        await ask(edge, data(oauth, grant_type="refresh_token"), 1, REFRESH)
        await ask(edge, data(oauth, grant_type="password"), 2, CLIENT | USER)
        rows = [await edge.rows(), await table(edge.edge.engine, "data_object"), await table(edge.edge.engine, "run_data_cache")]
        async with Redis.from_url(own_redis.url) as redis:
            keys = await redis.keys("*")
            values = [await redis.get(key) for key in keys if await redis.type(key) == b"string"]
            lasting = [key for key in keys if await redis.ttl(key) == -1]
        assert len([key for key in keys if b"token:" in key]) == 3
        assert len([key for key in keys if b"refresh:" in key]) == 1
        assert {key for key in keys if b"refresh:" in key} <= set(lasting)
        assert not [key for key in lasting if b"token:" in key]
        kept = b"".join([*keys, *values]) + repr(rows).encode()
    for secret in (*CLIENT.values(), *USER.values(), *oauth.good, "refresh-0", oauth.refresh):
        if secret not in ("me", "user"):
            assert secret.encode() not in kept
            assert base64.b64encode(secret.encode()).rstrip(b"=") not in kept


# Mutual TLS


def _identity(name: str = "edge.test") -> dict[str, str]:
    issued = authority("trusted").issue_cert(name)
    chain = "".join(pem.bytes().decode() for pem in issued.cert_chain_pems)
    return {"CLIENT_CERTIFICATE": chain, "CLIENT_KEY": issued.private_key_pem.bytes().decode()}


@pytest.fixture(params=["pyreqwest", "httpx"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InProcess]:
    """An edge of either HTTP engine, which trusts no authority of the tests by itself."""
    async with in_process(settings(tmp_path, http_engine=request.param, allowed_private_hosts="127.0.0.1")) as running:
        yield running


async def test_the_client_s_certificate_is_shown_and_the_source_s_authority_trusted(engine: InProcess) -> None:
    auth = {"method": "mtls", "ca_bundle": ca_pem().decode()}
    async with RawServer(replying(b"{}"), tls=server_context("127.0.0.1", want_client=True)) as server:
        url = f"https://127.0.0.1:{server.port}"
        await ok(engine, url, auth, _identity())
        assert (await refused(engine, url, {"method": "basic", "ca_bundle": ca_pem().decode()}, CLIENT))[0] in (
            "TLS_ERROR",
            "CONNECT_ERROR",
        )
        assert (await refused(engine, url, {"method": "mtls"}, _identity()))[0] == "TLS_ERROR"
        assert len(server.received) == 1


async def test_a_client_s_certificate_goes_with_any_method(engine: InProcess) -> None:
    auth = {"method": "api_key", "name": "X-Key", "client_certificate": True, "ca_bundle": ca_pem().decode()}
    async with RawServer(replying(b"{}"), tls=server_context("127.0.0.1", want_client=True)) as server:
        await ok(engine, f"https://127.0.0.1:{server.port}", auth, _identity() | {"API_KEY": "key"})
        assert server.received[0].get("x-key") == "key"


async def test_the_token_endpoint_is_shown_the_certificate_too(engine: InProcess) -> None:
    grant = json_reply({"access_token": "token"})
    context = server_context("127.0.0.1", want_client=True)
    async with RawServer(answering(lambda got: grant if "/token" in got.line else json_reply({})), tls=context) as server:
        url = f"https://127.0.0.1:{server.port}"
        auth = {"method": "bearer", "grant_type": "client_credentials", "token_url": f"{url}/token"}
        auth |= {"client_certificate": True, "ca_bundle": ca_pem().decode()}
        await ok(engine, f"{url}/data", auth, _identity() | CLIENT)
        assert [got.line.split()[1] for got in server.received] == ["/token", "/data"]


async def test_the_certificate_is_not_shown_to_another_origin(engine: InProcess) -> None:
    asking = server_context("127.0.0.1", want_client=True)
    asking.verify_mode = asking.verify_mode.CERT_OPTIONAL
    shown: list[bool] = []

    async def other(peer: Any) -> None:
        await peer.receive()
        shown.append(bool(peer._writer.get_extra_info("ssl_object").getpeercert()))
        await peer.reply(b"{}")

    async with RawServer(other, tls=asking) as away:
        there = f"Location: https://127.0.0.1:{away.port}/"
        moved = answering(lambda _: http_reply(b"", 302, there))
        async with RawServer(moved, tls=server_context("127.0.0.1", want_client=True)) as server:
            auth = {"method": "mtls", "ca_bundle": ca_pem().decode()}
            await ok(engine, f"https://127.0.0.1:{server.port}", auth, _identity())
        await ok(engine, f"https://127.0.0.1:{away.port}", auth, _identity())
    assert shown == [False, True]


@pytest.mark.parametrize("broken", ["key", "certificate", "pair", "encrypted"])
async def test_a_certificate_that_can_not_be_used_is_an_error_without_a_word_of_it(engine: InProcess, broken: str) -> None:
    identity, other = _identity(), _identity("other.test")
    match broken:
        case "key":
            identity["CLIENT_KEY"] = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----"
        case "certificate":
            identity["CLIENT_CERTIFICATE"] = "-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----"
        case "pair":
            identity["CLIENT_KEY"] = other["CLIENT_KEY"]
        case _:
            identity["CLIENT_KEY"] = identity["CLIENT_KEY"].replace("BEGIN ", "BEGIN ENCRYPTED ")
    async with RawServer(replying(b"{}"), tls=server_context("127.0.0.1", want_client=True)) as server:
        answer = await fetch(
            engine, f"https://127.0.0.1:{server.port}", {"method": "mtls", "ca_bundle": ca_pem().decode()}, identity
        )
        assert server.received == []
    assert answer.json()["error"]["code"] == ("INVALID_VALUE" if broken == "encrypted" else "TLS_ERROR")
    assert b"canary" not in answer.body
