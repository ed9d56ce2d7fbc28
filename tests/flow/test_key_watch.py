"""The watch over the keys: what no key in force opens is told once, shows until it is over, and needs no database."""

from __future__ import annotations

from typing import Any

import pytest

from broker_edge.errors import TierBroken
from broker_edge.flow.key_watch import KeyWatch
from broker_edge.guard.vault import Unopened

MISSING = "secrets are sealed with a key that is not in force"


class Counted:
    def __init__(self) -> None:
        self.found: dict[str | None, int] = {}
        self.down = False

    async def counts(self) -> dict[str | None, int]:
        if self.down:
            raise TierBroken("the database can't be reached")
        return dict(self.found)


class Setup:
    def __init__(self) -> None:
        self.seals = Counted()
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.watch = KeyWatch(self.seals, ("new", "old"), within=30, on_error=self._tell)

    def _tell(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_keys_that_open_everything_are_well(setup: Setup) -> None:
    setup.seals.found = {"new": 3, "old": 1}
    await setup.watch.look()
    assert (setup.watch.failing, setup.told) == (False, [])


async def test_a_key_that_lacks_is_told_once_with_what_it_seals(setup: Setup) -> None:
    setup.seals.found = {"new": 3, "lost": 2, None: 1}
    for _ in range(3):
        await setup.watch.look()
    assert setup.watch.failing
    assert sorted(setup.told, key=str) == [
        (MISSING, {"key": "lost", "secrets": 2}),
        (MISSING, {"key": None, "secrets": 1}),
    ]


async def test_it_is_over_once_nothing_lacks(setup: Setup) -> None:
    setup.seals.found = {"lost": 2}
    await setup.watch.look()
    setup.seals.found = {"new": 2}
    await setup.watch.look()
    assert not setup.watch.failing


async def test_a_database_that_can_not_tell_changes_nothing(setup: Setup) -> None:
    setup.seals.down = True
    await setup.watch.look()
    assert not setup.watch.failing
    setup.seals.down, setup.seals.found = False, {"lost": 2}
    await setup.watch.look()
    setup.seals.down = True
    await setup.watch.look()
    assert setup.watch.failing


async def test_what_does_not_open_shows_at_once_and_is_told_once_between_two_looks(setup: Setup) -> None:
    for _ in range(3):
        setup.watch.unopened(Unopened("lost"))
    assert setup.watch.failing
    assert setup.told == [("a secret is sealed with key lost, which is not among the keys in force", {"key": "lost"})]
    await setup.watch.look()
    assert not setup.watch.failing
    setup.watch.unopened(Unopened())
    assert setup.told[1:] == [("a secret can't be opened with the encryption keys in force", {"key": None})]
