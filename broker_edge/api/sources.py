"""Data sources over HTTP: their records, their life, and their secrets, of which no value ever leaves.

What is asked is read from the database, whichever instance is asked, so that everybody reads their own writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request, Response

from broker_edge.api.problems import body_of, of_resource, problems
from broker_edge.api.source_models import (
    Credential,
    CredentialIn,
    DataSource,
    DataSourceBody,
    DataSourceCredential,
    DataSourceEnvVar,
    DataSourceId,
    DataSourceVariables,
    NewDataSource,
    Scalar,
    SourceIn,
    Variable,
    VariableIn,
    members_of,
)
from broker_edge.core.auth import CREDENTIALS
from broker_edge.core.lifecycle import refuse_archived
from broker_edge.core.record import STATUSES, SecretKind, SecretMeta, SourceRecord, Status, check_variable_name
from broker_edge.core.redaction import MASK
from broker_edge.core.template import RESERVED
from broker_edge.errors import CallerError
from broker_edge.flow.registry import Registry
from broker_edge.flow.secrets import Secrets

PATH: Final = "/data-sources"
ONE: Final = PATH + "/{data_source_id}"
_BREATH: Final = 200  # records written before others have their turn


class Sources:
    """The handlers; `most` bytes of a request are read."""

    def __init__(self, registry: Registry, secrets: Secrets, most: int) -> None:
        self._registry = registry
        self._secrets = secrets
        self._most = most

    async def list_all(
        self, project_id: UUID | None = None, include_archived: bool = False, status: str | None = None
    ) -> Response:
        """Those of one project, archived ones where they are asked for."""
        records = await self._registry.list(project_text(project_id), include_archived=include_archived, status=_status(status))
        texts = []
        for start in range(0, len(records), _BREATH):
            texts.append(b",".join(msgspec.json.encode(members_of(record)) for record in records[start : start + _BREATH]))
            await asyncio.sleep(0)
        return Response(b"[%s]" % b",".join(texts), media_type="application/json")

    async def create(self, request: Request, response: Response, project_id: UUID | None = None) -> DataSource:
        """A draft."""
        body = await body_of(request, SourceIn, self._most)
        if project_id is not None and body.project_id not in (None, project_id):
            raise CallerError("INVALID_REQUEST", "project_id: is another one in the query")
        with in_words_of_the_resource():
            record = await self._registry.create(project_text(project_id or body.project_id), body.draft())
        response.headers["Location"] = f"{PATH}/{record.data_source_id}"
        return DataSource.of(record)

    async def get(self, data_source_id: UUID, project_id: UUID | None = None) -> DataSource:
        return DataSource.of(await self._registry.get(project_text(project_id), data_source_id))

    async def update(self, request: Request, data_source_id: UUID, project_id: UUID | None = None) -> DataSource:
        """A draft becomes what the body says; a published source takes description, metadata, caching, timeout and retry."""
        body = await body_of(request, SourceIn, self._most)
        with in_words_of_the_resource():
            return DataSource.of(await self._registry.update(project_text(project_id), data_source_id, body.draft()))

    async def remove(self, data_source_id: UUID, project_id: UUID | None = None) -> DataSourceId:
        """A draft is deleted with its secrets; a published source is archived, and its objects stay readable."""
        await self._registry.remove(project_text(project_id), data_source_id)
        return DataSourceId(data_source_id=data_source_id)

    async def publish(self, data_source_id: UUID, project_id: UUID | None = None) -> DataSource:
        with in_words_of_the_resource():
            return DataSource.of(await self._registry.publish(project_text(project_id), data_source_id))

    async def variables(self, data_source_id: UUID, project_id: UUID | None = None) -> list[DataSourceEnvVar]:
        """The variables that are kept, without their values."""
        record = await self._living(data_source_id, project_id)
        return [DataSourceEnvVar.of(meta) for meta in of_kind(record, "variable")]

    async def set_variables(self, request: Request, data_source_id: UUID, project_id: UUID | None = None) -> DataSourceVariables:
        """The whole list: what is not in it is taken away; the mask leaves a variable as it is."""
        given = await body_of(request, list[VariableIn], self._most)
        record = await self._living(data_source_id, project_id)
        _check_names([variable.name for variable in given], _check_variable, "name")
        values: dict[str, Scalar] = {variable.name: variable.value for variable in given}
        told = await self._set(record, "variable", values, complete=True)
        return DataSourceVariables(data_source_id=data_source_id, variables=[DataSourceEnvVar.of(meta) for meta in told])

    async def credentials(self, data_source_id: UUID, project_id: UUID | None = None) -> list[DataSourceCredential]:
        """The credentials that are kept, without their values."""
        record = await self._living(data_source_id, project_id)
        return [DataSourceCredential.of(record, meta) for meta in of_kind(record, "credential")]

    async def set_credentials(
        self, request: Request, data_source_id: UUID, project_id: UUID | None = None
    ) -> list[DataSourceCredential]:
        """Those that are given; others stay. Null takes a credential away, the mask leaves it as it is."""
        given = await body_of(request, list[CredentialIn], self._most)
        record = await self._living(data_source_id, project_id)
        _check_names([credential.credential_type for credential in given], _check_credential, "credential_type")
        for index, credential in enumerate(given):
            if credential.value == "":
                raise CallerError("INVALID_REQUEST", f"[{index}].value: must not be empty")
        values: dict[str, Scalar] = {credential.credential_type: credential.value for credential in given}
        told = await self._set(record, "credential", values, complete=False)
        return [DataSourceCredential.of(record, meta) for meta in told]

    async def _living(self, data_source_id: UUID, project_id: UUID | None) -> SourceRecord:
        record = await self._registry.get(project_text(project_id), data_source_id)
        refuse_archived(record)
        return record

    async def _set(
        self, record: SourceRecord, kind: SecretKind, values: dict[str, Scalar], *, complete: bool
    ) -> Sequence[SecretMeta]:
        """Those that `values` names and that are there by then, in its order."""
        keep = [name for name, value in values.items() if value == MASK]
        changed = {name: value for name, value in values.items() if value != MASK}
        told = await self._secrets.set(record, kind, changed, complete=complete, keep=keep)
        if sorted(told, key=_name) != of_kind(record, kind):
            await self._registry.secrets_changed(record.data_source_id)
        by_name = {meta.name: meta for meta in told}
        return [by_name[name] for name in values if name in by_name]


def source_routes(registry: Registry, secrets: Secrets, most: int) -> APIRouter:
    sources = Sources(registry, secrets, most)
    router = APIRouter(tags=["data sources"])
    for method, path, handler, model, body in (
        ("GET", PATH, sources.list_all, list[DataSource], None),
        ("POST", PATH, sources.create, DataSource, NewDataSource),
        ("GET", ONE, sources.get, DataSource, None),
        ("PUT", ONE, sources.update, DataSource, DataSourceBody),
        ("DELETE", ONE, sources.remove, DataSourceId, None),
        ("POST", f"{ONE}/publish", sources.publish, DataSource, None),
        ("GET", f"{ONE}/variables", sources.variables, list[DataSourceEnvVar], None),
        ("PUT", f"{ONE}/variables", sources.set_variables, DataSourceVariables, list[Variable]),
        ("GET", f"{ONE}/credentials", sources.credentials, list[DataSourceCredential], None),
        ("PUT", f"{ONE}/credentials", sources.set_credentials, list[DataSourceCredential], list[Credential]),
    ):
        add_route(router, method, path, handler, model, body)
    return router


def add_route(
    router: APIRouter,
    method: str,
    path: str,
    handler: Callable[..., Any],
    model: Any,
    body: Any = None,
    statuses: Collection[int] = (),
    extra: Mapping[int | str, dict[str, Any]] | None = None,
) -> None:
    """A route whose handler reads its body by itself: for FastAPI, `body` is no more than a name on the page."""
    found = {404} if "{" in path else set()
    taken = {409} if (method, path) in (("POST", PATH), ("PUT", ONE)) else set()
    router.add_api_route(
        path,
        handler,
        methods=[method],
        response_model=model,
        status_code=201 if (method, path) == ("POST", PATH) else 200,
        summary=f"{handler.__name__.replace('_', ' ').capitalize()}",
        responses={**problems(*found, *taken, *({413} if body else ()), *statuses), **(extra or {})},
        openapi_extra={"requestBody": _shown(body)} if body else None,
    )


def _shown(body: Any) -> dict[str, Any]:
    def reference(model: Any) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    of_list = getattr(body, "__args__", None)
    schema = {"type": "array", "items": reference(of_list[0])} if of_list else reference(body)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


@contextmanager
def in_words_of_the_resource() -> Iterator[None]:
    try:
        yield
    except CallerError as error:
        raise of_resource(error) from None


def project_text(project_id: UUID | None) -> str | None:
    return None if project_id is None else str(project_id)


def of_kind(record: SourceRecord, kind: SecretKind) -> list[SecretMeta]:
    return sorted((meta for meta in record.secrets if meta.kind == kind), key=_name)


def _name(meta: SecretMeta) -> str:
    return meta.name


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    for status in STATUSES:
        if status == text.upper():
            return status
    raise CallerError("INVALID_REQUEST", f"status: must be one of {', '.join(STATUSES)}")


def _check_names(names: Iterable[str], check: Callable[[str], None], member: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        try:
            check(name)
        except CallerError as error:
            raise CallerError(error.code, f"[{index}].{member}: {error.message}") from None
        if name in seen:
            raise CallerError("INVALID_REQUEST", f"[{index}].{member}: stands there twice")
        seen.add(name)


def _check_variable(name: str) -> None:
    if name in RESERVED:
        raise CallerError("INVALID_REQUEST", f"{name} is a credential: PUT it to /data-sources/{{id}}/credentials instead")
    check_variable_name(name)


def _check_credential(name: str) -> None:
    if name not in CREDENTIALS:
        raise CallerError("INVALID_REQUEST", f"must be one of {', '.join(CREDENTIALS)}")
