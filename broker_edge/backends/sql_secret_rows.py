"""The two tables of secrets, variables and credentials, seen as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_edge.backends.sql_errors import epoch_of
from broker_edge.backends.tables import data_source_credential, data_source_env_var
from broker_edge.core.record import SealedSecret, SecretKind, SecretMeta
from broker_edge.errors import Overtaken


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the secrets of one kind are: their table, and its columns for id and name."""

    kind: SecretKind
    table: sa.Table
    id: sa.Column[Any]
    name: sa.Column[Any]

    def select(self, *others: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Rows of (secret_id, data_source_id, name, version, value_type, created_at, last_updated_at) and `others`."""
        columns = self.table.c
        return sa.select(
            self.id.label("secret_id"),
            columns.data_source_id,
            self.name.label("name"),
            columns.version,
            columns.value_type,
            columns.created_at,
            columns.last_updated_at,
            *others,
        )

    def envelope(self, *, postgres: bool) -> sa.ColumnElement[str]:
        """The envelope as text: that of a variable is a JSON string in its column."""
        value = self.table.c.value
        if self.kind == "credential":
            return value
        return value.op("#>>")(sa.literal_column("'{}'")) if postgres else sa.func.json_extract(value, "$")


VARIABLES: Final = Kept("variable", data_source_env_var, data_source_env_var.c.data_source_env_var_id, data_source_env_var.c.name)
CREDENTIALS: Final = Kept(
    "credential", data_source_credential, data_source_credential.c.credential_id, data_source_credential.c.credential_type
)
KEPT: Final[dict[SecretKind, Kept]] = {"variable": VARIABLES, "credential": CREDENTIALS}


class Change(NamedTuple):
    """What makes some stored secrets others; `renewed` ones keep their row."""

    dropped: list[SealedSecret]
    added: list[SealedSecret]
    renewed: list[SealedSecret]


def change_of(stored: Iterable[SealedSecret], wanted: Iterable[SealedSecret], *, complete: bool) -> Change:
    """By name. A row and a version have one value for ever: who thought of another row than there is has an old picture.

    Raises Overtaken where the row that `wanted` goes on from is gone: somebody else took it away meanwhile.
    """
    before, after = {secret.name: secret for secret in stored}, {secret.name: secret for secret in wanted}
    change = Change([], [], [])
    for name, secret in after.items():
        old = before.get(name)
        if not _lasts(secret):
            continue
        if old is not None and old.secret_id == secret.secret_id:
            if (old.sealed, old.value_type) != (secret.sealed, secret.value_type):
                change.renewed.append(msgspec.structs.replace(secret, version=max(secret.version, old.version + 1)))
        elif secret.version == 1:
            change.added.append(secret)
        else:
            raise Overtaken("the secrets are being changed by others")
    kept = {secret.secret_id for secret in after.values() if _lasts(secret)}
    leaving = (old for name, old in before.items() if complete or name in after)
    change.dropped.extend(old for old in leaving if old.secret_id not in kept)
    return change


def _lasts(secret: SealedSecret) -> bool:
    """A variable may be known and unset; a credential that is unset is none."""
    return secret.kind == "variable" or secret.sealed is not None


async def metas_of(
    connection: AsyncConnection, ids: Sequence[UUID], kinds: Sequence[SecretKind] = ("variable", "credential")
) -> list[tuple[UUID, SecretMeta]]:
    """What may be told of the secrets of the sources `ids`, each with its source's id, by kind and name."""
    found = []
    for kind in kinds:
        kept = KEPT[kind]
        rows = await connection.execute(kept.select().where(kept.table.c.data_source_id.in_(ids)).order_by(kept.name))
        found += [(row.data_source_id, _meta(kind, row)) for row in rows]
    return found


def _meta(kind: SecretKind, row: sa.Row[Any]) -> SecretMeta:
    return SecretMeta(
        secret_id=row.secret_id,
        kind=kind,
        name=row.name,
        version=row.version,
        value_type=row.value_type,
        created_at=epoch_of(row.created_at),
        last_updated_at=epoch_of(row.last_updated_at),
    )
