"""Which addresses a fetch reaches, end to end: spellings of private ones are refused before anything is dialled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.edges import InProcess, in_process, request, settings, spec
from tests.upstreams import RawServer, replying

# As compiled, every one but dotted quads and IPv6 is refused when the spec is read: no two URL parsers agree on them.
_MISSPELT = ["2130706433", "0x7f000001", "0x7f.1", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.01", "017700000001"]
_LOOPBACK = ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "localhost.", "0.0.0.0"]
_LOOPBACK_V6 = [
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
]
_ELSEWHERE = [
    "169.254.169.254",
    "[fd00:ec2::254]",
    "[::ffff:169.254.169.254]",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
    "[fc00::1]",
    "[ff02::1]",
    "[2002:7f00:1::]",
    "[64:ff9b::a9fe:a9fe]",
    "[2001:db8::1]",
]


@pytest.fixture
async def listener() -> AsyncIterator[RawServer]:
    async with RawServer(replying(b"reached")) as server:
        yield server


@pytest.fixture(params=["pyreqwest", "httpx"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def edge(tmp_path: Path, engine: str) -> AsyncIterator[InProcess]:
    async with in_process(settings(tmp_path, http_engine=engine)) as running:
        yield running


async def verdict(edge: InProcess, host: str, port: int) -> tuple[int, str | None]:
    answer = await edge.post(request(spec(f"http://{host}:{port}/", response_type="PLAIN_TEXT", timeout=10)))
    error = answer.json()["error"]
    return answer.status, error and error["code"]


@pytest.mark.parametrize("host", [*_LOOPBACK, *_LOOPBACK_V6, *_ELSEWHERE])
async def test_a_private_address_is_denied_and_nothing_is_dialled(edge: InProcess, listener: RawServer, host: str) -> None:
    assert await verdict(edge, host, listener.port) == (403, "TARGET_DENIED")
    assert listener.connections == 0


@pytest.mark.parametrize("host", _MISSPELT)
async def test_an_address_that_parsers_disagree_about_is_refused_with_the_spec(
    edge: InProcess, listener: RawServer, host: str
) -> None:
    assert await verdict(edge, host, listener.port) == (400, "INVALID_DATA_SOURCE")
    assert listener.connections == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (400, "INVALID_VALUE")),
        ("localhost", (403, "TARGET_DENIED")),
        ("2130706433", (400, "INVALID_VALUE")),
        ("0x7f000001", (400, "INVALID_VALUE")),
        ("[::1]", (400, "INVALID_VALUE")),
        ("localhost/", (400, "INVALID_VALUE")),
        ("localhost#", (400, "INVALID_VALUE")),
        ("a@localhost", (400, "INVALID_VALUE")),
    ],
)
async def test_a_value_can_not_lead_there_either(
    edge: InProcess, listener: RawServer, host: str, expected: tuple[int, str]
) -> None:
    body = request(spec(f"http://{{{{ host }}}}:{listener.port}/"), {"host": host})
    answer = await edge.post(body)
    assert (answer.status, answer.json()["error"]["code"]) == expected
    assert listener.connections == 0


async def test_a_denial_tells_nothing_about_the_address(edge: InProcess, listener: RawServer) -> None:
    body = request(spec(f"http://{{{{ env.host }}}}:{listener.port}/"), env_variables={"host": "10.11.12.13"})
    answer = await edge.post(body)
    assert answer.status == 403
    assert b"10.11.12.13" not in answer.body


async def test_a_denial_is_written_down(edge: InProcess, listener: RawServer) -> None:
    await verdict(edge, "127.0.0.1", listener.port)
    (row,) = await edge.rows()
    assert (row.status_code, row.outcome, row.data_origin) == (403, "target_denied", None)


async def test_an_allowed_entry_lets_exactly_its_port_through(tmp_path: Path, engine: str, listener: RawServer) -> None:
    async with RawServer(replying(b"reached")) as neighbour:
        chosen = settings(tmp_path, http_engine=engine, allowed_private_hosts=f"127.0.0.1:{listener.port}")
        async with in_process(chosen) as edge:
            assert await verdict(edge, "127.0.0.1", listener.port) == (200, None)
            assert await verdict(edge, "127.0.0.1", neighbour.port) == (403, "TARGET_DENIED")
            assert await verdict(edge, "127.0.0.2", listener.port) == (403, "TARGET_DENIED")
    assert (listener.connections, neighbour.connections) == (1, 0)


@pytest.mark.parametrize("entry", ["localhost:{port}", "127.0.0.0/8", "127.0.0.1", "localhost"])
async def test_a_name_or_a_range_may_be_allowed(tmp_path: Path, engine: str, listener: RawServer, entry: str) -> None:
    allowed = (entry.format(port=listener.port), "::1")
    async with in_process(settings(tmp_path, http_engine=engine, allowed_private_hosts=allowed)) as edge:
        host = "localhost" if "localhost" in entry else "127.0.0.1"
        assert await verdict(edge, host, listener.port) == (200, None)
    assert listener.received[0].get("host") == f"{host}:{listener.port}"
