"""A `ports.SecretStore` in memory that tests can hold up and break, and what they put into it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from broker_edge.core.exchange import SecretRef
from broker_edge.core.record import Reading, SealedSecret, SecretKind, SecretMeta, SourceRecord
from broker_edge.errors import TierBroken
from broker_edge.guard.vault import KeyRing, Vault, key_id_of, new_entry


def vault(*entries: str) -> Vault:
    return Vault(KeyRing.parse(",".join(entries or (new_entry("a"),))))


def new_id() -> uuid.UUID:
    return uuid.UUID(int=random.getrandbits(128))


def source_record(project: uuid.UUID | None = None, **members: Any) -> SourceRecord:
    return SourceRecord(new_id(), project, "sample", {"url": "http://bureau.test"}, {}, {}, **members)


def ref(record: SourceRecord, name: str, version: int = 1, kind: SecretKind = "variable") -> SecretRef:
    return SecretRef(record.data_source_id, kind, name, version)


class MemorySecrets:
    """`gate` holds reads back after they have read; `readings` is the audit."""

    def __init__(self) -> None:
        self.secrets: dict[uuid.UUID, SealedSecret] = {}
        self.readings: list[tuple[uuid.UUID, Reading]] = []
        self.uses: dict[tuple[uuid.UUID, int], int] = {}
        self.writes = 0
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()

    async def read(self, data_source_id: uuid.UUID, reading: Reading) -> Sequence[SealedSecret]:
        self._reach()
        self.readings.append((data_source_id, reading))
        found = [secret for secret in self.secrets.values() if secret.data_source_id == data_source_id]
        self.arrived.set()
        await self.gate.wait()
        return found

    async def write(
        self, data_source_id: uuid.UUID, kind: SecretKind, secrets: Sequence[SealedSecret], *, complete: bool
    ) -> Sequence[SecretMeta]:
        self._reach()
        self.writes += 1
        named = {secret.name for secret in secrets}
        self.secrets = {
            key: secret
            for key, secret in self.secrets.items()
            if (secret.data_source_id, secret.kind) != (data_source_id, kind) or (not complete and secret.name not in named)
        }
        self.secrets |= {secret.secret_id: secret for secret in secrets}
        return [SecretMeta(one.secret_id, kind, one.name, one.version, one.value_type, 0.0, 0.0) for one in secrets]

    async def count(self, uses: Mapping[tuple[uuid.UUID, int], int], at: float) -> None:
        self._reach()
        for use, count in uses.items():
            self.uses[use] = self.uses.get(use, 0) + count

    async def sealed_otherwise(self, prefix: str, most: int) -> Sequence[SealedSecret]:
        self._reach()
        return [one for one in self.secrets.values() if one.sealed is not None and not one.sealed.startswith(prefix)][:most]

    async def counts(self) -> Mapping[str | None, int]:
        self._reach()
        return Counter(key_id_of(one.sealed) for one in self.secrets.values() if one.sealed is not None)

    async def reseal(self, secret: SealedSecret, sealed: str) -> bool:
        self._reach()
        if self.secrets.get(secret.secret_id) != secret:
            return False
        self.secrets[secret.secret_id] = SealedSecret(
            secret.secret_id,
            secret.data_source_id,
            secret.project_id,
            secret.kind,
            secret.name,
            secret.version,
            sealed,
            secret.value_type,
        )
        return True

    def _reach(self) -> None:
        if self.down:
            raise TierBroken("the database can't be reached")
