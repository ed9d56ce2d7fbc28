"""Where a redirect leads, and what of the request goes along, over either HTTP engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, request, settings, spec
from tests.upstreams import RawServer, Received, answering, ca_pem, server_context

_SECRET = "token-0123456789"


@pytest.fixture
async def other() -> AsyncIterator[Bureau]:
    async with Bureau(lambda _: http_reply(b"other")).running() as running:
        yield running


@pytest.fixture(params=["pyreqwest", "httpx"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path, bureau: Bureau, other: Bureau) -> AsyncIterator[InProcess]:
    allowed = (f"127.0.0.1:{bureau.port}", f"127.0.0.1:{other.port}")
    async with in_process(settings(tmp_path, http_engine=request.param, allowed_private_hosts=allowed)) as running:
        yield running


def asking(url: str, method: str = "GET", **members: Any) -> dict[str, Any]:
    return request(spec(url, method=method, response_type="PLAIN_TEXT", **members), env_variables={"token": _SECRET})


def redirecting(location: str, status: int = 302) -> Callable[[Received], bytes]:
    """Sends whoever asks for /start elsewhere; answers everything else."""

    def answer(got: Received) -> bytes:
        if got.line.split()[1].startswith("/start"):
            return http_reply(b"" if got.line.startswith("HEAD") else b"moved", status, f"Location: {location}")
        return http_reply(b"" if got.line.startswith("HEAD") else b"arrived")

    return answer


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = redirecting("/there?a=1", status)
    answer = await edge.post(asking(f"{bureau.url}/start"))
    assert (answer.status, answer.json()["value"]) == (200, "arrived")
    assert [call.line for call in bureau.calls] == ["GET /start HTTP/1.1", "GET /there?a=1 HTTP/1.1"]


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("there", "/a/there"),
        ("../there", "/there"),
        ("?b=2", "/a/start?b=2"),
        ("/there#part", "/there"),
        ("{url}", "/"),
        ("{url}?b=2", "/?b=2"),
        ("{url}/x/../there", "/there"),
        ("/x/%2e%2e/there", "/there"),
        ("/x/./there/.", "/x/there/"),
        ('/a"b<c>d', "/a%22b%3Cc%3Ed"),
        ("/a|b^c`d{{e}}", "/a%7Cb%5Ec%60d%7B%7Be%7D%7D"),
        ("/there?q='a'|{{b}}", "/there?q=%27a%27%7C%7B%7Bb%7D%7D"),
        ("/a%2Fb%20c", "/a%2Fb%20c"),
        ("/a%zz", "/a%25zz"),
        ("/x//there", "/x//there"),
        ("//127.0.0.1:{port}/there", "/there"),
        ("HTTP://127.0.0.1:{port}/there", "/there"),
    ],
)
async def test_a_location_is_resolved_and_sent_in_one_form_by_either_engine(
    edge: InProcess, bureau: Bureau, location: str, target: str
) -> None:
    filled = location.replace("{url}", bureau.url).replace("{port}", str(bureau.port))
    bureau._answer = lambda got: (
        http_reply(b"", 302, f"Location: {filled}") if got.line == "GET /a/start HTTP/1.1" else http_reply(b"arrived")
    )
    answer = await edge.post(asking(f"{bureau.url}/a/start"))
    assert (answer.status, bureau.calls[-1].line) == (200, f"GET {target} HTTP/1.1")


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/a",
        "file:///etc/hosts",
        "javascript:alert(1)",
        "http://",
        "http:///a",
        "http://user:pw@127.0.0.1/a",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://[::1/",
        "http://a b/",
        "/a b",
        "http://127.1/",
        "http://2130706433/",
    ],
)
async def test_what_is_no_usable_location_is_the_upstreams_error(edge: InProcess, bureau: Bureau, location: str) -> None:
    bureau._answer = redirecting(location)
    answer = await edge.post(asking(f"{bureau.url}/start"))
    assert code(answer) == (502, "UPSTREAM_STATUS")
    assert answer.json()["upstream_status"] == 302
    assert len(bureau.calls) == 1


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:1/", "http://169.254.169.254/latest/", "http://10.0.0.1/", "http://[::1]/"]
)
async def test_a_redirect_to_a_denied_address_is_not_dialled(edge: InProcess, bureau: Bureau, location: str) -> None:
    bureau._answer = redirecting(location)
    answer = await edge.post(asking(f"{bureau.url}/start"))
    assert code(answer) == (403, "TARGET_DENIED")


async def test_five_hops_are_followed_and_a_sixth_is_not(edge: InProcess, bureau: Bureau) -> None:
    def answer(got: Received) -> bytes:
        left = int(got.line.split()[1].removeprefix("/"))
        return http_reply(b"", 302, f"Location: /{left - 1}") if left else http_reply(b"arrived")

    bureau._answer = answer
    assert (await edge.post(asking(f"{bureau.url}/5"))).json()["value"] == "arrived"
    bureau.calls.clear()
    assert code(await edge.post(asking(f"{bureau.url}/6"))) == (502, "UPSTREAM_STATUS")
    assert len(bureau.calls) == 6


async def test_a_loop_ends(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = redirecting("/start", 307)
    answer = await edge.post(asking(f"{bureau.url}/start"))
    assert (code(answer), answer.json()["upstream_status"], len(bureau.calls)) == ((502, "UPSTREAM_STATUS"), 307, 6)


async def test_what_is_followed_ends_in_the_entry_of_the_first_url(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = redirecting("/there")
    body = asking(f"{bureau.url}/start")
    await edge.post(body)
    assert (await edge.post(body)).json()["origin"] == "CACHE"
    assert len(bureau.calls) == 2


# What goes along


@pytest.mark.parametrize(
    ("status", "method", "then", "content"),
    [
        (301, "POST", "GET", b""),
        (302, "POST", "GET", b""),
        (303, "POST", "GET", b""),
        (303, "PUT", "GET", b""),
        (307, "POST", "POST", b'{"a":1}'),
        (308, "POST", "POST", b'{"a":1}'),
        (307, "PATCH", "PATCH", b'{"a":1}'),
        (302, "PUT", "PUT", b'{"a":1}'),
        (303, "HEAD", "HEAD", b""),
    ],
)
async def test_the_status_says_whether_method_and_body_go_along(
    edge: InProcess, bureau: Bureau, status: int, method: str, then: str, content: bytes
) -> None:
    bureau._answer = redirecting("/there", status)
    answer = await edge.post(asking(f"{bureau.url}/start", method, body=None if method == "HEAD" else {"a": 1}))
    assert answer.status == 200
    _, second = bureau.calls
    assert (second.line, second.body) == (f"{then} /there HTTP/1.1", content)
    assert second.get("content-type") == ("application/json" if content else None)


async def test_headers_go_along_within_the_origin(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = redirecting("/there")
    await edge.post(asking(f"{bureau.url}/start", headers={"Authorization": "Bearer {{ token }}"}))
    assert bureau.calls[-1].get("authorization") == f"Bearer {_SECRET}"


async def test_another_origin_gets_nothing_that_could_be_a_secret(edge: InProcess, bureau: Bureau, other: Bureau) -> None:
    bureau._answer = redirecting(f"{other.url}/there")
    headers = {
        "Authorization": "Bearer {{ token }}",
        "X-Api-Key": "{{ env.token }}",
        "Cookie": "a={{ token }}",
        "Accept": "text/*",
    }
    answer = await edge.post(asking(f"{bureau.url}/start?key={{{{ token }}}}", headers=headers, params={"more": "{{ token }}"}))
    assert (answer.status, answer.json()["value"]) == (200, "other")
    (call,) = other.calls
    assert _SECRET.encode() not in call.head + call.body
    assert call.get("accept") == "text/*"
    assert call.get("host") == f"127.0.0.1:{other.port}"


@pytest.mark.parametrize("status", [307, 308])
async def test_a_body_is_never_taken_to_another_origin(edge: InProcess, bureau: Bureau, other: Bureau, status: int) -> None:
    bureau._answer = redirecting(f"{other.url}/there", status)
    answer = await edge.post(asking(f"{bureau.url}/start", "POST", body={"token": "{{ token }}"}))
    assert (code(answer), answer.json()["upstream_status"], other.calls) == ((502, "UPSTREAM_STATUS"), status, [])


async def test_a_redirect_that_drops_the_body_may_go_to_another_origin(edge: InProcess, bureau: Bureau, other: Bureau) -> None:
    bureau._answer = redirecting(f"{other.url}/there", 303)
    answer = await edge.post(asking(f"{bureau.url}/start", "POST", body={"token": "{{ token }}"}))
    assert (answer.status, other.calls[0].line, other.calls[0].body) == (200, "GET /there HTTP/1.1", b"")


async def test_a_redirect_from_https_to_http_is_not_followed(tmp_path: Path, other: Bureau) -> None:
    (tmp_path / "ca.pem").write_bytes(ca_pem())
    moved = answering(lambda _: http_reply(b"", 302, f"Location: {other.url}/"))
    async with RawServer(moved, tls=server_context("127.0.0.1")) as server:
        chosen = settings(tmp_path, upstream_ca_file=tmp_path / "ca.pem", allowed_private_hosts="127.0.0.1")
        async with in_process(chosen) as edge:
            answer = await edge.post(asking(f"https://127.0.0.1:{server.port}/"))
    assert (code(answer), other.calls) == ((502, "UPSTREAM_STATUS"), [])
