"""What a data source has fetched, over HTTP: pages of what there is, and each value as its fetch gave it."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from broker_edge.api.source_models import DataObject, DataObjectMetadata
from broker_edge.api.sources import ONE, add_route, project_text
from broker_edge.errors import CallerError
from broker_edge.flow.registry import Registry
from broker_edge.flow.tiers import shaped
from broker_edge.ports import Archive, ObjectNote

_LINK: Final = {
    "description": 'the next page, `<...>; rel="next"` (RFC 8288); absent on the last one',
    "schema": {"type": "string"},
}
_LINKED: Final[dict[int | str, dict[str, Any]]] = {200: {"headers": {"Link": _LINK}}}


class Objects:
    """The handlers. Objects of an archived source stay readable."""

    def __init__(self, registry: Registry, archive: Archive) -> None:
        self._registry = registry
        self._archive = archive

    async def objects(
        self,
        request: Request,
        response: Response,
        data_source_id: UUID,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: UUID | None = None,
        project_id: UUID | None = None,
    ) -> list[DataObjectMetadata]:
        """The newest first; the next page is where the `Link` header says (RFC 8288), or after the last `data_object_id`."""
        await self._registry.get(project_text(project_id), data_source_id)
        notes = await self._archive.objects(data_source_id, project_id, most=limit + 1, after=after)
        if len(notes) > limit:
            asked = {"limit": limit, "after": notes[limit - 1].object_id, "project_id": project_id}
            query = urlencode({name: value for name, value in asked.items() if value is not None})
            response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
        return [DataObjectMetadata.of(note) for note in notes[:limit]]

    async def object(self, data_source_id: UUID, object_id: UUID, project_id: UUID | None = None) -> Response:
        """One object with its value, by the response type of its time."""
        await self._registry.get(project_text(project_id), data_source_id)
        item = await self._archive.object(data_source_id, project_id, object_id)
        if item is None:
            raise CallerError("DATA_OBJECT_NOT_FOUND", "the data source has no such object")
        note = DataObjectMetadata.of(ObjectNote(item.object_id, item.data_source_id, item.key, item.created_at))
        # Spliced: parsed and dumped again, a number would not stay what it was.
        head = msgspec.json.encode(note.model_dump(mode="json"))[:-1]
        return Response(b'%s,"value":%s}' % (head, await shaped(item)), media_type="application/json")


def object_routes(registry: Registry, archive: Archive) -> APIRouter:
    objects = Objects(registry, archive)
    router = APIRouter(tags=["data sources"])
    add_route(router, "GET", f"{ONE}/objects", objects.objects, list[DataObjectMetadata], extra=_LINKED)
    add_route(router, "GET", f"{ONE}/objects/{{object_id}}", objects.object, DataObject, statuses={502})
    return router
