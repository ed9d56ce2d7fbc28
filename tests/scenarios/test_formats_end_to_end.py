"""The four formats from an upstream's bytes to a caller's value, character sets included, and over HTTPS and HTTP/2."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, request, settings, spec
from tests.upstreams import Http2Server, RawServer, ca_pem, replying, server_context

_BIG = "123456789012345678901234567890"


@pytest.fixture
async def edge(tmp_path: Path, bureau: Bureau) -> AsyncIterator[InProcess]:
    async with in_process(settings(tmp_path, bureau.port)) as running:
        yield running


async def fetched(edge: InProcess, bureau: Bureau, kind: str, content: bytes, content_type: str | None) -> list[Answer]:
    """The answer of a miss and that of a hit."""
    headers = [f"Content-Type: {content_type}"] if content_type else []
    bureau._answer = lambda _: http_reply(content, 200, *headers)
    body = request(spec(bureau.url, response_type=kind))
    return [await edge.post(body), await edge.post(body)]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"id": {_BIG}}}',
        '{"n": 1.10, "m": 1E400, "k": -0.0, "e": 1e-7}',
        "[0.1000000000000000055511151231257827, 5e-324]",
        '{"b": 1, "a": 2, "a": 3}',
        r'{"s": "\u00e9\ud83d\ude00\/", "lone": "\ud800"}',
        ' { "a" : [ ] } ',
        '"text"',
        "null",
    ],
)
async def test_json_passes_byte_for_byte_on_a_miss_and_on_a_hit(edge: InProcess, bureau: Bureau, text: str) -> None:
    for answer in await fetched(edge, bureau, "JSON", text.encode(), "application/json"):
        assert answer.status == 200
        assert f'"value":{text},"start_time":'.encode() in answer.body


@pytest.mark.parametrize(
    ("encoding", "content_type"),
    [
        ("utf-8", "application/json"),
        ("utf-8-sig", "application/json"),
        ("latin-1", "application/json; charset=ISO-8859-1"),
        ("utf-16", "application/json"),
        ("utf-16-le", "application/json; charset=utf-16le"),
        ("utf-16-be", 'application/json; charset="UTF-16"'),
        ("utf-32", "application/json"),
    ],
)
async def test_json_in_any_character_set_is_read(edge: InProcess, bureau: Bureau, encoding: str, content_type: str) -> None:
    value = {"name": "Zoë Müller", "id": int(_BIG)}
    content = json.dumps(value, ensure_ascii=False).encode(encoding)
    answers = await fetched(edge, bureau, "JSON", content, content_type)
    assert [answer.json()["value"] for answer in answers] == [value, value]


_XML = '<r xmlns:b="urn:b" a="1"><p>Zoë</p><p>Müller</p><b:q>x</b:q>tail</r>'
_XML_VALUE = {"a": "1", "p": ["Zoë", "Müller"], "{urn:b}q": "x", "text": "tail"}


@pytest.mark.parametrize(
    ("prolog", "encoding", "content_type"),
    [
        ('<?xml version="1.0" encoding="ISO-8859-1"?>', "latin-1", "text/xml"),
        ("", "latin-1", "text/xml; charset=iso-8859-1"),
        ('<?xml version="1.0" encoding="windows-1252"?>', "cp1252", None),
        ('<?xml version="1.0"?>', "utf-8", "application/xml"),
        ('<?xml version="1.0" encoding="UTF-16"?>', "utf-16", "application/soap+xml"),
    ],
)
async def test_xml_is_read_by_its_prolog_or_by_its_content_type(
    edge: InProcess, bureau: Bureau, prolog: str, encoding: str, content_type: str | None
) -> None:
    answers = await fetched(edge, bureau, "XML", (prolog + _XML).encode(encoding), content_type)
    assert [answer.json()["value"] for answer in answers] == [_XML_VALUE, _XML_VALUE]


async def test_csv_is_a_list_of_objects(edge: InProcess, bureau: Bureau) -> None:
    content = 'name,note\r\n"Müller, Zoë","she said ""hi""\nand left"\r\nplain,\r\n'.encode()
    expected = [{"name": "Müller, Zoë", "note": 'she said "hi"\nand left'}, {"name": "plain", "note": ""}]
    answers = await fetched(edge, bureau, "CSV", content, "text/csv; charset=utf-8")
    assert [answer.json()["value"] for answer in answers] == [expected, expected]


async def test_plain_text_is_a_string(edge: InProcess, bureau: Bureau) -> None:
    text = 'Zoë costs 5 €\r\n"quoted" \\ and \t tabs'
    answers = await fetched(edge, bureau, "PLAIN_TEXT", text.encode("cp1252"), "text/plain; charset=windows-1252")
    assert [answer.json()["value"] for answer in answers] == [text, text]


@pytest.mark.parametrize(
    ("kind", "content", "content_type"),
    [
        ("JSON", b"<html>", "application/json"),
        ("JSON", b'{"a": 1,}', "application/json"),
        ("JSON", b'{"a": NaN}', "application/json"),
        ("JSON", b'{"a": "\xff"}', "application/json"),
        ("JSON", b"{} {}", "application/json"),
        ("JSON", b"[" * 100_000 + b"]" * 100_000, "application/json"),
        ("XML", b"<a><b></a>", "text/xml"),
        ("XML", b"no xml", "text/xml"),
        ("XML", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "text/xml"),
        ("XML", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hosts">]><a>&b;</a>', "text/xml"),
        ("XML", b"<a>\xe9</a>", "text/xml"),
        ("CSV", b'a,b\n"1,2\n', "text/csv"),
        ("CSV", b"a,b\n1,2,3\n", "text/csv"),
        ("CSV", b"a,a\n1,2\n", "text/csv"),
        ("PLAIN_TEXT", b"\xff\xfe\xfd", "text/plain"),
        ("PLAIN_TEXT", b"\xe9", "text/plain"),
        ("PLAIN_TEXT", b"a", "text/plain; charset=made-up"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_not_in_its_format_is_a_parse_error_that_quotes_nothing(
    edge: InProcess, bureau: Bureau, kind: str, content: bytes, content_type: str
) -> None:
    answers = await fetched(edge, bureau, kind, content, content_type)
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["source"], error["retryable"]) == (502, "PARSE_ERROR", "upstream", False)
        assert "html" not in answer.json()["detail"]
    assert len(bureau.calls) == 2


def requesting(url: str, **members: Any) -> dict[str, Any]:
    return request(spec(url, response_type="PLAIN_TEXT", **members))


@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
async def test_an_upstream_over_https_is_trusted_by_the_authority_that_the_settings_name(tmp_path: Path, engine: str) -> None:
    (tmp_path / "ca.pem").write_bytes(ca_pem())
    chosen = {"http_engine": engine, "allowed_private_hosts": "127.0.0.0/8,localhost,::1"}
    tls = server_context("localhost", "127.0.0.1")
    async with RawServer(replying(b"secure"), tls=tls) as server:
        async with in_process(settings(tmp_path / "a", upstream_ca_file=tmp_path / "ca.pem", **chosen)) as edge:
            for host in ("localhost", "127.0.0.1"):
                answer = await edge.post(requesting(f"https://{host}:{server.port}/"))
                assert (answer.status, answer.json()["value"]) == (200, "secure")
            received = len(server.received)
        async with in_process(settings(tmp_path / "b", **chosen)) as edge:
            answer = await edge.post(
                requesting(f"https://localhost:{server.port}/", retry={"max_retries": 3, "backoff_factor": 0})
            )
    assert (answer.status, answer.json()["error"]["code"]) == (502, "TLS_ERROR")
    assert len(server.received) == received == 2


@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
async def test_a_certificate_for_another_name_is_refused(tmp_path: Path, engine: str) -> None:
    (tmp_path / "ca.pem").write_bytes(ca_pem())
    chosen = settings(
        tmp_path, upstream_ca_file=tmp_path / "ca.pem", http_engine=engine, allowed_private_hosts="127.0.0.0/8,localhost,::1"
    )
    async with RawServer(replying(b"secure"), tls=server_context("bureau.test")) as server, in_process(chosen) as edge:
        answer = await edge.post(requesting(f"https://localhost:{server.port}/"))
    assert (answer.json()["error"]["code"], server.received) == ("TLS_ERROR", [])


@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
async def test_an_upstream_that_speaks_http_2_is_asked_in_it(tmp_path: Path, engine: str) -> None:
    (tmp_path / "ca.pem").write_bytes(ca_pem())
    chosen = settings(
        tmp_path, upstream_ca_file=tmp_path / "ca.pem", http_engine=engine, allowed_private_hosts="127.0.0.0/8,localhost,::1"
    )
    server = Http2Server(lambda _: (200, [("content-type", "text/plain")], b"two"))
    server._tls = server_context("localhost", alpn=("h2",))
    async with server, in_process(chosen) as edge:
        answer = await edge.post(requesting(f"https://localhost:{server.port}/a?b=1", headers={"X-Id": "7"}))
    assert (answer.status, answer.json()["value"]) == (200, "two")
    (got,) = server.requests
    assert (got.pseudo[":path"], got.pseudo[":authority"], got.headers["x-id"]) == ("/a?b=1", f"localhost:{server.port}", "7")
