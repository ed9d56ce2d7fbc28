"""Calls as a test of a source makes them: once, whatever comes back, with all that went along told; and what live ones share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_edge.core.plan import Plan, make_plan
from broker_edge.core.source import parse_source
from broker_edge.errors import CallerError
from broker_edge.flow.calling import Probed
from tests.edges import Bureau, InProcess, http_reply, in_process, json_reply, request, settings, spec
from tests.flow.doubles import record
from tests.oauth import Authority

CLIENT = {"CLIENT_ID": "me", "CLIENT_SECRET": "client-secret"}


@pytest.fixture(params=["pyreqwest", "httpx"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InProcess]:
    async with in_process(settings(tmp_path, http_engine=request.param, allowed_private_hosts="127.0.0.1")) as running:
        yield running


@pytest.fixture
async def oauth() -> AsyncIterator[Authority]:
    async with Authority().running() as running:
        yield running


def planned(url: str, env: Any = None, **members: Any) -> Plan:
    return make_plan(parse_source(msgspec.json.encode(spec(url, **members))), {}, env or {})


async def probe(edge: InProcess, plan: Plan, seconds: float = 20.0) -> Probed:
    deadline = asyncio.get_running_loop().time() + seconds
    return await edge.edge.calls.probe(plan, lambda: deadline - asyncio.get_running_loop().time(), record())


@pytest.mark.parametrize("status", [200, 204, 304, 400, 404, 429, 500, 503])
async def test_an_answer_is_an_answer_whatever_its_status(edge: InProcess, bureau: Bureau, status: int) -> None:
    body = b"" if status in (204, 304) else b'{"why": "so"}'
    bureau._answer = lambda _: http_reply(body, status, "X-More: 1")
    probed = await probe(edge, planned(bureau.url, retry={"max_retries": 3, "backoff_factor": 0}))
    assert probed.reply is not None
    assert (probed.reply.status, probed.reply.body, probed.reply.headers["x-more"]) == (status, body, "1")
    assert (probed.error, len(bureau.calls)) == (None, 1)


@pytest.mark.parametrize(("size", "kept"), [(2**20, 2**20), (2**20 + 1, 0)])
async def test_the_body_of_an_error_is_kept_up_to_a_bound(edge: InProcess, bureau: Bureau, size: int, kept: int) -> None:
    bureau._answer = lambda _: http_reply(b"x" * size, 500)
    probed = await probe(edge, planned(bureau.url))
    assert probed.reply is not None
    assert (probed.reply.status, len(probed.reply.body)) == (500, kept)


async def test_a_redirect_is_followed_to_its_answer(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda got: http_reply(b"", 302, "Location: /b") if "/a" in got.line else http_reply(b"gone", 410)
    probed = await probe(edge, planned(f"{bureau.url}/a"))
    assert probed.reply is not None
    assert (probed.reply.status, probed.reply.body) == (410, b"gone")


async def test_what_befell_a_call_is_told_with_the_request(edge: InProcess, bureau: Bureau) -> None:
    bureau.gate.clear()
    probed = await probe(edge, planned(f"{bureau.url}/{{{{ env.key }}}}", {"key": "k"}), 0.2)
    assert probed.error is not None
    assert (probed.error.code, probed.reply, probed.outbound.url) == ("TIMEOUT", None, f"{bureau.url}/k")
    probed = await probe(edge, planned("http://127.0.0.1:9/"))
    assert probed.error is not None
    assert probed.error.code == "CONNECT_ERROR"
    probed = await probe(edge, planned("http://10.0.0.1/"))
    assert probed.error is not None
    assert probed.error.code == "TARGET_DENIED"


async def test_what_the_caller_gave_wrong_is_the_caller_s(edge: InProcess, bureau: Bureau) -> None:
    with pytest.raises(CallerError) as caught:
        await probe(edge, planned(bureau.url, {"CLIENT_ID": "a:b", "CLIENT_SECRET": "x"}, auth={"method": "basic"}))
    assert caught.value.code == "INVALID_VALUE"


async def test_all_that_went_along_is_told_and_nothing_else(edge: InProcess, oauth: Authority) -> None:
    oauth.answer = json_reply({"access_token": "first"})
    env = {**CLIENT, "deep": {"a": ["b", 7, True, None]}, "key": "key", "unused": "unused", "USERNAME": "nobody"}
    body = {"deep": {"env": "deep"}, "key": "{{ env.key }}"}
    plan = planned(f"{oauth.url}/data", env, auth=oauth.auth(), method="POST", body=body)
    probed = await probe(edge, plan)
    assert probed.reply is not None
    assert (probed.reply.status, probed.reply.body) == (401, b"no")
    assert set(probed.secrets) == {"me", "client-secret", "me:client-secret", "key", "b", 7, "first"}
    assert (len(oauth.asked), len(oauth.served)) == (2, 2)
    assert dict(probed.outbound.headers)["Authorization"] == "Bearer first"


async def test_a_test_and_a_fetch_use_one_token(edge: InProcess, oauth: Authority) -> None:
    source = spec(f"{oauth.url}/data", auth=oauth.auth())
    assert (await edge.post(request(source, env_variables=CLIENT))).status == 200
    plan = make_plan(parse_source(msgspec.json.encode(source)), {}, CLIENT)
    assert (await probe(edge, plan)).reply is not None
    assert len(oauth.asked) == 1


async def test_the_key_of_a_call_stays_the_same_after_a_refused_token(edge: InProcess, oauth: Authority) -> None:
    source = spec(f"{oauth.url}/data", auth=oauth.auth(), idempotency_key_header="Idempotency-Key", method="POST")
    assert (await edge.post(request(source, env_variables=CLIENT))).status == 200
    oauth.revoke()
    other = {**source, "caching": {"enabled": False}}
    assert (await edge.post(request(other, env_variables=CLIENT))).status == 200
    keys = [uuid.UUID(call.get("idempotency-key") or "") for call in oauth.served]
    assert (len(keys), keys[1] == keys[2], keys[0] == keys[1]) == (3, True, False)


async def test_a_refused_token_is_not_tried_again_though_401_may_be_retried(edge: InProcess, oauth: Authority) -> None:
    source = spec(
        f"{oauth.url}/data", auth=oauth.auth(), retry={"max_retries": 2, "backoff_factor": 0, "status_forcelist": [401]}
    )
    assert (await edge.post(request(source, env_variables=CLIENT))).status == 200
    oauth.revoke()
    other = {**source, "caching": {"enabled": False}}
    assert (await edge.post(request(other, env_variables=CLIENT))).status == 200
    assert (len(oauth.asked), len(oauth.served)) == (2, 3)
