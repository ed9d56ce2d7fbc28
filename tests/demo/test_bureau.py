"""The sample bureau: its four formats, its knobs, and what is on the wire when an answer is cut."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import socket
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from xml.etree import ElementTree

import brotli
import httpx
import pytest
import uvicorn
import zstandard

from broker_edge.demo.bureau import MAX_REQUEST, TOKEN, CallLog, create_bureau

SOAP = (
    b'<?xml version="1.0"?><e:Envelope xmlns:e="urn:e"><e:Body><q xmlns="urn:q"><tax_id> 0123 </tax_id></q></e:Body></e:Envelope>'
)


class Naps:
    """A clock that only writes down how long it was asked to wait."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def client(naps: Naps | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_bureau(sleep=naps or Naps())), base_url="http://bureau")


async def test_a_score_is_the_same_every_time_and_keeps_the_tax_id_as_text() -> None:
    async with client() as one, client() as other:
        first, again = await one.get("/score/01234567890"), await other.get("/score/01234567890")
        different = await one.get("/score/01234567891")
    assert first.content == again.content != different.content
    assert first.headers["content-type"] == "application/json"
    assert first.json()["tax_id"] == "01234567890"
    assert 0 <= first.json()["score"] <= 1000
    assert len(str(first.json()["ledger_id"])) == 30


async def test_the_score_asks_for_its_token_only_when_told_to() -> None:
    async with client() as http:
        refused = await http.get("/score/1?auth=1", headers={"authorization": "Bearer other"})
        allowed = await http.get("/score/1?auth=1", headers={"authorization": f"Bearer {TOKEN}"})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert allowed.status_code == 200


async def test_the_catalogue_is_csv_with_quoted_commas_quotes_and_line_breaks() -> None:
    async with client() as http:
        pages = [await http.get(f"/catalogue.csv?page={page}") for page in (1, 2, 6)]
    rows = [list(csv.DictReader(io.StringIO(page.text, newline=""))) for page in pages]
    assert [len(page) for page in rows] == [20, 20, 0]
    assert len({row["sku"] for page in rows for row in page}) == 40
    names = {row["name"] for row in rows[0]}
    assert {"Valve, brass", 'Hose 3/4"', "Pump\n(two lines)", "Válvula de retenção", ""} <= names
    assert pages[0].headers["content-type"] == "text/csv; charset=utf-8"


async def test_the_registry_answers_soap_whose_prolog_alone_names_its_encoding() -> None:
    async with client() as http:
        answer = await http.post("/registry", content=SOAP)
    assert answer.headers["content-type"] == "text/xml"
    assert answer.content.startswith(b'<?xml version="1.0" encoding="ISO-8859-1"?>')
    with pytest.raises(UnicodeDecodeError):
        answer.content.decode("utf-8")
    company = ElementTree.fromstring(answer.content).find(".//{urn:example:registry}company")
    assert company is not None
    assert company.get("{urn:example:registry}id") == "0123"
    assert len(company.findall("{urn:example:registry}partner")) == 2


@pytest.mark.parametrize(
    "body", [b"", b"<a>", b"<a/>", b"<a><tax_id> </tax_id></a>", b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>']
)
async def test_the_registry_answers_a_fault_to_what_names_no_tax_id(body: bytes) -> None:
    async with client() as http:
        answer = await http.post("/registry", content=body)
    assert answer.status_code == 500
    assert ElementTree.fromstring(answer.content).findtext(".//faultcode") == "soap:Client"


async def test_the_notice_is_utf_8_text() -> None:
    async with client() as http:
        answer = await http.get("/notice")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "pontuação" in answer.text
    assert answer.text.endswith("✓\n")


async def test_a_body_over_the_bound_is_refused() -> None:
    async with client() as http:
        assert (await http.post("/registry", content=b"x" * (MAX_REQUEST + 1))).status_code == 413


async def test_latency_is_waited_before_the_answer() -> None:
    naps = Naps()
    async with client(naps) as http:
        await http.get("/notice?latency_ms=1500")
        await http.get("/notice?latency_ms=0")
    assert naps.taken == [1.5]


async def test_the_first_calls_of_one_target_fail_and_no_other() -> None:
    async with client() as http:
        asked = [await http.get(f"/score/{tax_id}?fail_first=2") for tax_id in (1, 1, 2, 1, 2, 2)]
    assert [answer.status_code for answer in asked] == [503, 503, 503, 200, 503, 200]


async def test_a_target_of_the_registry_includes_the_request_body() -> None:
    async with client() as http:
        asked = [await http.post("/registry?fail_first=1", content=body) for body in (SOAP, SOAP.replace(b"0123", b"9"), SOAP)]
    assert [answer.status_code for answer in asked] == [503, 503, 200]


async def test_status_beside_a_failure_knob_belongs_to_the_failures() -> None:
    async with client() as http:
        asked = [await http.get("/notice?fail_first=1&status=429&retry_after=7") for _ in range(2)]
    assert [answer.status_code for answer in asked] == [429, 200]
    assert asked[0].headers["retry-after"] == "7"


async def test_fail_rate_fails_about_that_share() -> None:
    async with client() as http:
        statuses = [(await http.get("/notice?fail_rate=0.3")).status_code for _ in range(400)]
        assert (await http.get("/notice?fail_rate=1")).status_code == 503
    assert 80 < statuses.count(503) < 160


@pytest.mark.parametrize(("status", "empty"), [(201, False), (204, True), (304, True), (404, False)])
async def test_status_alone_is_answered_as_asked(status: int, empty: bool) -> None:
    async with client() as http:
        answer = await http.get(f"/score/1?status={status}")
    assert answer.status_code == status
    assert (answer.content == b"") is empty


@pytest.mark.parametrize("path", ["/score/1", "/catalogue.csv", "/notice"])
async def test_size_pads_an_answer_to_about_so_many_bytes(path: str) -> None:
    async with client() as http:
        bare, padded = await http.get(path), await http.get(f"{path}?size=5000")
    assert len(bare.content) < 2000
    assert abs(len(padded.content) - 5000) < 100


async def test_size_pads_the_registry_inside_the_document() -> None:
    async with client() as http:
        answer = await http.post("/registry?size=5000", content=SOAP)
    assert abs(len(answer.content) - 5000) < 100
    ElementTree.fromstring(answer.content)


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body, 1_000_000),
}


async def raw(http: httpx.AsyncClient, path: str) -> tuple[httpx.Response, bytes]:
    async with http.stream("GET", path) as answer:
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


@pytest.mark.parametrize("coding", sorted(DECODERS))
async def test_a_coded_answer_decodes_to_the_plain_one(coding: str) -> None:
    async with client() as http:
        plain = await http.get("/notice")
        answer, body = await raw(http, f"/notice?encoding={coding}")
    assert answer.headers["content-encoding"] == coding
    assert DECODERS[coding](body) == plain.content


async def test_a_cut_coded_answer_has_the_right_length_and_no_tail() -> None:
    async with client() as http:
        answer, body = await raw(http, "/notice?encoding=gzip&truncate=1&size=3000")
    assert int(answer.headers["content-length"]) == len(body)
    with pytest.raises(EOFError):
        gzip.decompress(body)


async def test_a_bad_knob_is_a_400_with_a_sentence() -> None:
    async with client() as http:
        answer = await http.get("/notice?latency_ms=long")
    assert (answer.status_code, answer.text) == (400, "latency_ms must be a whole number from 0 to 60000.")


async def test_calls_are_counted_by_path_and_forgotten_when_asked() -> None:
    async with client() as http:
        for path in ("/score/1", "/score/1?size=9", "/notice?status=500"):
            await http.get(path)
        assert (await http.get("/calls")).json() == {"/score/1": 2, "/notice": 1}
        assert (await http.delete("/calls")).status_code == 204
        assert (await http.get("/calls")).json() == {}


def test_the_call_log_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_edge.demo.bureau.MAX_PATHS", 2)
    log = CallLog()
    for path in ("/a", "/b", "/c", "/d", "/a"):
        log.note(path)
        log.failed_before(path.encode())
    assert log.paths == {"/a": 2, "/b": 1, "(others)": 2}
    assert len(log.failing) == 2


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """The bureau behind a real server on a loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_bureau(), log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True


async def test_a_cut_plain_answer_ends_before_its_length() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /notice?truncate=1 HTTP/1.1\r\nhost: bureau\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    promised = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    assert 0 < len(body) < int(promised.split(b":")[1])
