"""Secrets by reference: sealed until the moment of a call, cached sealed for a minute at most, counted at every use.

A cached secret is dropped when the registry hears that its source has changed, and nothing is cached while it can't hear.
Fails closed: a secret that can't be read, or not be opened, is no secret, and the call is not made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from broker_edge.core.exchange import SecretRef
from broker_edge.core.record import VARIABLES_LIMIT, Reading, SealedSecret, SecretKind, SecretMeta, SourceRecord
from broker_edge.errors import CallerError, EdgeError, Overtaken, TierBroken
from broker_edge.flow.background import Background
from broker_edge.guard.vault import Scalar, Unopened, Vault
from broker_edge.ports import SecretStore

_MOST: Final = 10_000  # sources whose secrets are cached
_EVERY: Final = 1.0  # seconds between flushes of the counts
_TRIES: Final = 20  # somebody gets through at each
ValueType = Literal["string", "number", "boolean", "null"]
_Sealed = Mapping[tuple[SecretKind, str], SealedSecret]


class Secrets:
    """`hears` says whether a change would be heard of; `within` (seconds) bounds one word of the store.

    `on_unopened` is told of what is needed and does not open.
    """

    def __init__(
        self,
        store: SecretStore,
        vault: Vault,
        background: Background,
        *,
        new_id: Callable[[], UUID],
        within: float,
        hears: Callable[[], bool] = lambda: True,
        on_unopened: Callable[[Unopened], None] = lambda _: None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_age: float = 60.0,
    ) -> None:
        self._store = store
        self._vault = vault
        self._background = background
        self._new_id = new_id
        self._within = within
        self._hears = hears
        self._on_unopened = on_unopened
        self._now = now
        self._monotonic = monotonic
        self._max_age = max_age
        self._held: OrderedDict[UUID, tuple[float, _Sealed]] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[_Sealed | TierBroken]] = {}
        self._forgets = 0
        self._uses: dict[tuple[UUID, int], int] = {}

    async def reveal(self, env: Mapping[str, Any], project: str | None, reading: Reading) -> dict[str, Any]:
        """`env` with values in place of its `SecretRef`s.

        Raises MISSING_VARIABLE naming one that is not set any more, TierBroken where the store can't be read, and INTERNAL where
        a secret is not what was sealed for this project and row.
        """
        values = dict(env)
        refs = {name: value for name, value in env.items() if isinstance(value, SecretRef)}
        for data_source_id in {ref.data_source_id for ref in refs.values()}:
            own = {name: ref for name, ref in refs.items() if ref.data_source_id == data_source_id}
            sealed = await self._sealed(data_source_id, own.values(), reading)
            for name, ref in own.items():
                values[name] = self._opened(name, sealed.get((ref.kind, ref.name)), project)
        return values

    async def set(
        self,
        record: SourceRecord,
        kind: SecretKind,
        values: Mapping[str, Scalar],
        *,
        complete: bool,
        keep: Collection[str] = (),
        tries: int = _TRIES,
    ) -> Sequence[SecretMeta]:
        """Make the source's secrets of that kind what `values` says, null for unset; `complete` takes away all others but `keep`.

        A value that is what it was changes nothing, neither its version nor when it was changed. Answers what may be told of
        them. The caller tells the registry. Raises INVALID_REQUEST where one to keep is not set or there would be too many,
        Overtaken where others were quicker at each of the `tries`.
        """
        for _ in range(tries - 1):
            with contextlib.suppress(Overtaken):
                return await self._set(record, kind, values, complete=complete, keep=keep)
        return await self._set(record, kind, values, complete=complete, keep=keep)

    async def _set(
        self, record: SourceRecord, kind: SecretKind, values: Mapping[str, Scalar], *, complete: bool, keep: Collection[str]
    ) -> Sequence[SecretMeta]:
        found = await self._store.read(record.data_source_id, Reading("change", self._now()))
        kept = {secret.name: secret for secret in found if secret.kind == kind}
        if kind == "variable" and len({*values, *keep, *(() if complete else kept)}) > VARIABLES_LIMIT:
            raise CallerError("INVALID_REQUEST", f"a data source has at most {VARIABLES_LIMIT} variables")
        secrets = [self._revised(record, kind, name, value, kept.get(name)) for name, value in values.items()]
        secrets += [_kept(kept, name) for name in keep]
        gone = kept.keys() - {secret.name for secret in secrets} if complete else ()
        if not gone and all(secret is kept.get(secret.name) for secret in secrets):
            told = [meta for meta in record.secrets if meta.kind == kind]
            # Otherwise the record is older than what was found, and the store has to say what may be told.
            if {(meta.secret_id, meta.version) for meta in told} == {(each.secret_id, each.version) for each in kept.values()}:
                return told
        written = await self._store.write(record.data_source_id, kind, secrets, complete=complete)
        self.forget(record.data_source_id)
        return written

    def forget(self, data_source_id: UUID | None) -> None:
        """Drop what is cached of a source, or everything: what is asked for from here on is read anew.

        A read that is under way may have read what was: it goes on for those who wait for it, but nobody joins it any more, and
        it caches nothing.
        """
        self._forgets += 1
        if data_source_id is None:
            self._held.clear()
            self._reading.clear()
        else:
            self._held.pop(data_source_id, None)
            self._reading.pop(data_source_id, None)

    async def count_forever(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await self.flush()

    async def flush(self) -> None:
        """Write down the uses since the last time; what the store can't take waits for the next time."""
        if self._uses:
            uses, self._uses = self._uses, {}
            # In a task of its own: cancelled halfway, nobody would know whether they were counted.
            await asyncio.shield(self._background.spawn("count", self._count(uses)))

    async def _count(self, uses: Mapping[tuple[UUID, int], int]) -> None:
        try:
            async with asyncio.timeout(self._within):
                await self._store.count(uses, self._now())
        except (TierBroken, TimeoutError):
            for use, count in uses.items():
                self._uses[use] = self._uses.get(use, 0) + count

    async def _sealed(self, data_source_id: UUID, refs: Iterable[SecretRef], reading: Reading) -> _Sealed:
        held = self._held.get(data_source_id)
        if held is not None and self._hears() and self._monotonic() - held[0] < self._max_age:
            # The registry may know of a change whose notice is still on its way to us.
            if all((ref.kind, ref.name) in held[1] and held[1][ref.kind, ref.name].version >= ref.version for ref in refs):
                return held[1]
            self.forget(data_source_id)
        task = self._reading.get(data_source_id)
        if task is None:
            task = self._reading[data_source_id] = self._background.spawn("secrets", self._read(data_source_id, reading))
        sealed = await asyncio.shield(task)
        if isinstance(sealed, TierBroken):
            raise sealed.with_traceback(None)
        return sealed

    async def _read(self, data_source_id: UUID, reading: Reading) -> _Sealed | TierBroken:
        """One read for all who wait. The number of forgets is taken before it: what was overtaken must not fill the cache."""
        forgets, began, heard = self._forgets, self._monotonic(), self._hears()
        try:
            async with asyncio.timeout(self._within):
                found = await self._store.read(data_source_id, reading)
        except (TierBroken, TimeoutError):
            return TierBroken("the secrets of the data source can't be read")
        finally:
            if self._reading.get(data_source_id) is asyncio.current_task():
                del self._reading[data_source_id]
        sealed = {(secret.kind, secret.name): secret for secret in found}
        if heard and self._hears() and forgets == self._forgets:
            self._held[data_source_id] = began, sealed
            if len(self._held) > _MOST:
                self._held.popitem(last=False)
        return sealed

    def _opened(self, name: str, secret: SealedSecret | None, project: str | None) -> Scalar:
        if secret is None or secret.sealed is None:
            raise CallerError("MISSING_VARIABLE", f"No value is set for {name}")
        try:
            value = self._vault.open(secret.sealed, *_about(secret, project))
        except Unopened as error:
            self._on_unopened(error)
            raise
        use = secret.secret_id, secret.version
        self._uses[use] = self._uses.get(use, 0) + 1
        return value

    def _revised(
        self, record: SourceRecord, kind: SecretKind, name: str, value: Scalar, kept: SealedSecret | None
    ) -> SealedSecret:
        project = None if record.project_id is None else str(record.project_id)
        if kept is not None and self._is(kept, value, project):
            return kept
        secret = SealedSecret(
            self._new_id() if kept is None else kept.secret_id,
            record.data_source_id,
            record.project_id,
            kind,
            name,
            1 if kept is None else kept.version + 1,
            None,
            value_type_of(value),
        )
        if value is None:
            return secret
        return msgspec.structs.replace(secret, sealed=self._vault.seal(value, *_about(secret, project)))

    def _is(self, kept: SealedSecret, value: Scalar, project: str | None) -> bool:
        if kept.sealed is None or value is None:
            return kept.sealed is None and value is None
        try:
            current = self._vault.open(kept.sealed, *_about(kept, project))
        except EdgeError:  # its key is gone: setting it again is the way back
            return False
        return type(current) is type(value) and current == value


def _kept(kept: Mapping[str, SealedSecret], name: str) -> SealedSecret:
    secret = kept.get(name)
    if secret is None or secret.sealed is None:
        raise CallerError("INVALID_REQUEST", f"{name} is not set, so that it can't stay as it is")
    return secret


def value_type_of(value: Scalar) -> ValueType:
    """The JSON type of a secret; null stands for one that is not set."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _about(secret: SealedSecret, project: str | None) -> tuple[str | None, ...]:
    """What an envelope is bound to. The project is the asker's: another's secret does not open, whatever the tables say."""
    return project, str(secret.data_source_id), secret.kind, secret.name, str(secret.secret_id)
