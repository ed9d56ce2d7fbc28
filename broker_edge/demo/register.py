"""The sample sources in the registry, published, so that they can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from broker_edge.demo.requests import sample_specs
from broker_edge.errors import EdgeError
from broker_edge.manifests.applying import SOURCES, Edge, carry_out, records
from broker_edge.manifests.changes import Record, compare
from broker_edge.manifests.reading import Document, Refusal


async def register(edge: Edge, bureau_url: str) -> None:
    """Register what is missing. A source of a bureau at another address is archived: a published one can't be turned."""
    there = {record["name"]: record for record in await records(edge)}
    for name, spec in sample_specs(bureau_url).items():
        await _register(edge, spec, there.get(name))


async def _register(edge: Edge, spec: Mapping[str, Any], record: Record | None) -> None:
    wanted = {member: value for member, value in spec.items() if member != "data_source_id"}
    document = Document(spec["name"], spec["name"], wanted, published=True)
    if record is not None:
        try:
            await _made_so(edge, document, record)
        except Refusal:
            await edge.call("DELETE", f"{SOURCES}/{record['data_source_id']}")
        else:
            return
    try:
        await _made_so(edge, replace(document, data_source_id=spec["data_source_id"]))
    except EdgeError as error:
        if error.code != "DATA_SOURCE_ALREADY_EXISTS":
            raise
        await _made_so(edge, document)  # an archived source keeps its id: the one that follows it gets another


async def _made_so(edge: Edge, document: Document, *there: Record) -> None:
    await carry_out(edge, compare([document], there, publish=False)[0])
