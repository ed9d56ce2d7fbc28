"""How often JSON is decoded for a hit and a miss, counted: the request once, the value once when it comes and never again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
import pytest

from broker_edge.core import spec as spec_module
from broker_edge.settings import Settings
from tests.edges import Bureau, InProcess, http_reply, in_process, json_reply, request, spec
from tests.scenarios.herds import Gathering, herd

MARK = "a value by which its text is known"


class Decodes:
    """The texts that any JSON decoder is given, in whatever thread."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []

    def seen(self, text: Any) -> None:
        self.texts.append(text.encode() if isinstance(text, str) else bytes(text))

    def of(self, mark: str) -> int:
        return sum(mark.encode() in text for text in self.texts)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    """Taps orjson, msgspec and the standard library; decoders that are made later are tapped as well."""
    decodes, made = Decodes(), msgspec.json.Decoder

    class Tapped:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._decoder = made(*arguments, **options)

        def decode(self, text: Any) -> Any:
            decodes.seen(text)
            return self._decoder.decode(text)

    def tap(module: Any, name: str) -> None:
        decode = getattr(module, name)

        def tapped(text: Any, *arguments: Any, **options: Any) -> Any:
            decodes.seen(text)
            return decode(text, *arguments, **options)

        monkeypatch.setattr(module, name, tapped)

    tap(orjson, "loads")
    tap(json, "loads")
    tap(msgspec.json, "decode")
    monkeypatch.setattr(msgspec.json, "Decoder", Tapped)
    monkeypatch.setattr(spec_module, "_DECODER", Tapped(spec_module.Spec))
    return decodes


@pytest.fixture
async def edge(decodes: Decodes, backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends) as running:
        yield running


def counted(decodes: Decodes, body: dict[str, Any]) -> tuple[int, int, int]:
    """Decodes of the request, of its spec alone, and of the value."""
    source = body["data_source_spec"]["data_source_id"]
    requests, specs = decodes.of(body["run_id"]), decodes.of(source)
    return requests, specs - requests, decodes.of(MARK)


@pytest.mark.parametrize("size", [1, 1000, 300_000], ids=["small", "1 KB", "shaped in a thread"])
async def test_a_miss_decodes_the_value_once_and_a_hit_never(
    edge: InProcess, bureau: Bureau, decodes: Decodes, size: int
) -> None:
    bureau._answer = lambda _: json_reply({"text": MARK, "more": "x" * size})
    source = spec(bureau.url)
    miss, hit = request(source), request(source)
    answers = [await edge.post(miss)]
    assert counted(decodes, miss) == (1, 1, 1)  # the spec's text by itself: compiled once
    decodes.texts.clear()
    answers.append(await edge.post(hit))
    assert await edge.edge.background.drain(30) == 0
    assert counted(decodes, hit) == (1, 0, 0)
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "CACHE"]


async def test_a_herd_decodes_the_value_once(edge: InProcess, bureau: Bureau, decodes: Decodes) -> None:
    bureau._answer = lambda _: json_reply({"text": MARK})
    source = spec(bureau.url)
    await herd(bureau, Gathering(edge), [edge.post(request(source)) for _ in range(20)])
    assert decodes.of(MARK) == 1


async def test_a_value_that_the_durable_tier_gives_back_is_decoded_once_for_all(
    edge: InProcess, bureau: Bureau, decodes: Decodes
) -> None:
    bureau._answer = lambda _: json_reply({"text": MARK})
    source = spec(bureau.url)
    key = (await edge.post(request(source))).json()["key"]
    assert await edge.edge.background.drain(30) == 0
    await edge.edge.hot.delete(key)
    decodes.texts.clear()
    bodies = [request(source) for _ in range(3)]
    answers = [await edge.post(body) for body in bodies]
    assert decodes.of(MARK) == 1
    assert [counted(decodes, body)[0] for body in bodies] == [1, 1, 1]
    assert {answer.json()["origin"] for answer in answers} == {"CACHE"}


async def test_what_is_no_json_is_never_decoded_as_such(edge: InProcess, bureau: Bureau, decodes: Decodes) -> None:
    bureau._answer = lambda _: http_reply(f"name\n{MARK}\n".encode())
    for kind in ("CSV", "PLAIN_TEXT"):
        body = request(spec(bureau.url, response_type=kind))
        assert (await edge.post(body)).status == 200
        assert counted(decodes, body) == (1, 1, 0)


async def test_the_journal_decodes_nothing_of_what_was_asked_or_answered(
    edge: InProcess, bureau: Bureau, decodes: Decodes
) -> None:
    bureau._answer = lambda _: json_reply({"text": MARK})
    body = request(spec(bureau.url))
    await edge.post(body)
    decodes.texts.clear()
    assert await edge.edge.journal.flush(60)
    await asyncio.sleep(0)
    assert counted(decodes, body) == (0, 0, 0)
