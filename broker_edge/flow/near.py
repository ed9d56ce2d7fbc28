"""Where there is no near tier: in the embedded default, whose hot tier is in this process, and where a setting turns it off."""

from __future__ import annotations

from collections.abc import Iterable

from broker_edge.core.exchange import Entry


class NoNear:
    """`ports.NearTier` that holds nothing."""

    def get(self, key: str) -> Entry | None:
        return None

    def begin(self, key: str) -> int:
        return 0

    def offer(self, key: str, entry: Entry, begun: int) -> None:
        return None

    def forget(self, keys: Iterable[str]) -> None:
        return None
