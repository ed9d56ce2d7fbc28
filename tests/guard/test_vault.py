"""Secrets at rest: what is sealed comes back, and nothing that was altered, moved or sealed with another key ever does."""

from __future__ import annotations

import base64
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.errors import EdgeError
from broker_edge.guard.vault import KEY_BYTES, KeyRing, Unopened, Vault, key_id_of, new_entry

OLD, NEW = new_entry("old"), new_entry("new")
ABOUT = ("project", "source", "variable", "token", "row")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
PARTS = st.lists(st.none() | st.text(), max_size=5).map(tuple)


def vault(*entries: str) -> Vault:
    return Vault(KeyRing.parse(",".join(entries or (NEW,))))


def refusal(work: Any) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        work()
    assert caught.value.code == "INTERNAL"
    assert not caught.value.retryable
    return caught.value


@given(SCALARS, PARTS)
def test_what_is_sealed_comes_back_exactly(value: Any, about: tuple[str | None, ...]) -> None:
    opened = vault().open(vault().seal(value, *about), *about)
    assert (type(opened), opened) == (type(value), value)


@given(st.text(min_size=12))
def test_an_envelope_tells_its_key_and_nothing_else(value: str) -> None:
    sealed = vault().seal(value, *ABOUT)
    assert sealed.startswith("v1.new.")
    assert sealed.isascii()
    assert value not in sealed
    assert base64.b64encode(value.encode("utf-8", "surrogatepass")).decode().rstrip("=") not in sealed


def test_the_same_value_is_never_sealed_alike() -> None:
    assert len({vault().seal("secret", *ABOUT) for _ in range(100)}) == 100


@given(PARTS, PARTS)
def test_what_was_sealed_for_one_row_opens_for_no_other(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    sealed = vault().seal("secret", *one)
    if one == other:
        assert vault().open(sealed, *other) == "secret"
    else:
        refusal(lambda: vault().open(sealed, *other))


@pytest.mark.parametrize(
    "other",
    [
        ("projectsource", "", "variable", "token", "row"),
        ("project", "source", "variable", "token", "row", ""),
        ("project", "source", "variable", "token", "row", None),
        (None, "source", "variable", "token", "row"),
        ("project", "source", "credential", "token", "row"),
        ("project", "source", "variable", "token", "another row"),
    ],
)
def test_no_part_of_a_row_passes_for_another(other: tuple[str | None, ...]) -> None:
    refusal(lambda: vault().open(vault().seal("secret", *ABOUT), *other))


def test_every_changed_character_is_noticed() -> None:
    sealed = vault().seal("secret", *ABOUT)
    for at in range(len(sealed)):
        for other in "AQz_-.1v":
            if other != sealed[at]:
                changed = sealed[:at] + other + sealed[at + 1 :]
                refusal(lambda changed=changed: vault().open(changed, *ABOUT))


@pytest.mark.parametrize(
    "sealed", ["", "v1", "v1.", "v1.new", "v1.new.", "v1.new.AAAA", "v2.new.AAAA", "secret", "v1.new.\u00e4", "v1..A"]
)
def test_what_is_no_envelope_does_not_open(sealed: str) -> None:
    refusal(lambda: vault().open(sealed, *ABOUT))


@given(st.text())
def test_no_text_opens_by_chance(text: str) -> None:
    refusal(lambda: vault().open(text, *ABOUT))


def test_an_envelope_cut_short_does_not_open() -> None:
    sealed = vault().seal("secret", *ABOUT)
    for length in range(len(sealed)):
        refusal(lambda length=length: vault().open(sealed[:length], *ABOUT))


def test_the_first_key_seals_and_all_open() -> None:
    sealed = vault(OLD).seal("secret", *ABOUT)
    both = vault(NEW, OLD)
    assert both.open(sealed, *ABOUT) == "secret"
    assert key_id_of(both.seal("secret", *ABOUT)) == "new"
    assert (both.prefix, both.key_ids) == ("v1.new.", ("new", "old"))
    refusal(lambda: vault(NEW).open(sealed, *ABOUT))


def test_another_key_under_the_same_id_opens_nothing() -> None:
    refusal(lambda: vault(new_entry("new")).open(vault().seal("secret", *ABOUT), *ABOUT))


def test_an_envelope_can_not_be_passed_off_as_another_key_s() -> None:
    sealed = vault(NEW).seal("secret", *ABOUT)
    twin = NEW.replace("new:", "twin:")
    refusal(lambda: vault(NEW, twin).open(sealed.replace("v1.new.", "v1.twin."), *ABOUT))


def test_digests_need_the_ring_and_keep_their_parts_apart() -> None:
    ring = KeyRing.parse(NEW)
    assert ring.digest(("a", "b")) == KeyRing.parse(NEW).digest(("a", "b"))
    assert len({ring.digest(parts) for parts in [("a", "b"), ("ab",), ("a", "b", None), ("a", "b", ""), ("b", "a")]}) == 5
    assert ring.digest(("a",)) != KeyRing.parse(new_entry("new")).digest(("a",))
    assert len(ring.digest(("a",))) == 32


def test_digests_stay_while_a_key_is_put_behind_or_taken_from_there() -> None:
    assert KeyRing.parse(f"{OLD},{NEW}").digest(("a",)) == KeyRing.parse(OLD).digest(("a",))
    assert KeyRing.parse(f"{NEW},{OLD}").digest(("a",)) == KeyRing.parse(NEW).digest(("a",))


def test_a_key_that_lacks_is_named() -> None:
    refused = refusal(lambda: vault(NEW).open(vault(OLD).seal("secret", *ABOUT), *ABOUT))
    assert isinstance(refused, Unopened)
    assert refused.key_id == "old"
    assert refused.message == "a secret is sealed with key old, which is not among the keys in force"
    other = refusal(lambda: vault(new_entry("old")).open(vault(OLD).seal("secret", *ABOUT), *ABOUT))
    assert isinstance(other, Unopened)
    assert other.key_id is None


KEY = base64.b64encode(bytes(range(KEY_BYTES))).decode()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must hold a key"),
        (" , ", "must hold a key"),
        (KEY, "entry 1 must be id:key"),
        (f":{KEY}", "entry 1 must be id:key"),
        (f"a b:{KEY}", "entry 1 must be id:key"),
        (f"a.b:{KEY}", "entry 1 must be id:key"),
        (f"{'x' * 33}:{KEY}", "entry 1 must be id:key"),
        (f"a:{KEY},a:{KEY}", "entry 2 has the id of another one"),
        ("a:", "the key of entry 1 must be 32 bytes"),
        (f"a:{KEY[:-8]}", "the key of entry 1 must be 32 bytes"),
        (f"a:{KEY},b:{KEY[:20]}!{KEY[21:]}", "the key of entry 2 must be 32 bytes"),
        (f"a:{base64.b64encode(bytes(33)).decode()}", "the key of entry 1 must be 32 bytes"),
        (f"a:{KEY[:-2]}\u00e4=", "the key of entry 1 must be 32 bytes"),
    ],
)
def test_a_ring_that_can_not_be_read_is_refused_without_a_word_of_it(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        KeyRing.parse(text)
    assert KEY[:12] not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize(
    "text", [f"a:{KEY}", f" a:{KEY} , ", f"a:{KEY.rstrip('=')}", f"a:{KEY.replace('+', '-').replace('/', '_')}", f"a:{KEY}\n"]
)
def test_keys_are_read_as_people_paste_them(text: str) -> None:
    assert Vault(KeyRing.parse(text)).open(Vault(KeyRing.parse(f"a:{KEY}")).seal(1, "x"), "x") == 1


def test_a_ring_shows_no_key() -> None:
    ring = KeyRing.parse(f"a:{KEY}")
    assert repr(ring) == "KeyRing(1 keys)"
