"""Moving secrets under the ring's first key, while the service runs. Nothing is kept of how far it came: what is left to do shows
in the envelopes themselves, so it can be ended at any moment and started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from broker_edge.core.record import Reading, SealedSecret
from broker_edge.errors import EdgeError
from broker_edge.guard.vault import Vault
from broker_edge.ports import SecretStore

_BATCH: Final = 200


class Rotated(NamedTuple):
    """How many secrets were sealed anew, and how many no key in force opens."""

    resealed: int
    unreadable: int


async def rotate(
    store: SecretStore, vault: Vault, *, now: Callable[[], float] = time.time, progress: Callable[[], None] = lambda: None
) -> Rotated:
    """Seal everything anew that is not under the first key; raises TierBroken. `progress` is called for each.

    One that is changed meanwhile is left to the next look: whoever changed it may have sealed it with another key yet.
    """
    resealed, unreadable = 0, set[UUID]()
    while True:
        batch = await store.sealed_otherwise(vault.prefix, _BATCH + len(unreadable))
        todo = {secret.secret_id for secret in batch} - unreadable
        if not todo:
            return Rotated(resealed, len(unreadable))
        for data_source_id in {secret.data_source_id for secret in batch if secret.secret_id in todo}:
            # Read once more, by the way that is audited: what the batch tells is only where there is something to do.
            for secret in await store.read(data_source_id, Reading("rotation", now())):
                if secret.secret_id in todo and secret.sealed is not None:
                    sealed = _moved(secret, vault)
                    if sealed is None:
                        unreadable.add(secret.secret_id)
                    else:
                        resealed += await store.reseal(secret, sealed)
                    progress()


def _moved(secret: SealedSecret, vault: Vault) -> str | None:
    project = None if secret.project_id is None else str(secret.project_id)
    about = project, str(secret.data_source_id), secret.kind, secret.name, str(secret.secret_id)
    try:
        return vault.seal(vault.open(secret.sealed or "", *about), *about)
    except EdgeError:
        return None
