"""Keys: what changes them and what must not; and holes without a value."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge.core.exchange import SecretRef
from broker_edge.core.plan import make_plan
from broker_edge.core.source import DataSource
from broker_edge.errors import CallerError
from tests.core.specs import source_of

SOURCE = source_of(params={"q": "{{ x }}"})


def key(params: dict[str, Any], env: dict[str, Any] | None = None, source: DataSource = SOURCE, **more: Any) -> str:
    return make_plan(source, params, env or {}, **more).key


def test_the_key_is_32_hex_digits() -> None:
    digits = key({"x": 1})
    assert len(digits) == 32
    assert set(digits) <= set("0123456789abcdef")


def test_keys_stay_the_same_between_releases() -> None:
    assert key({"x": 1, "tax_id": "01234567890"}) == "66e5186ee22bfe17ba0b87ec5f97581c"


def test_values_of_different_types_and_digits_have_different_keys() -> None:
    values = [
        1,
        1.0,
        "1",
        True,
        None,
        "true",
        "",
        [],
        {},
        [1],
        {"a": 1},
        10**30,
        10**30 + 1,
        1e30,
        2**64,
        2**64 + 1,
        "x",
        {"a": None},
    ]
    assert len({key({"x": value}) for value in values}) == len(values)


def test_project_generation_source_and_unused_params_are_in_the_key() -> None:
    keys = {
        key({"x": 1}),
        key({"x": 1}, project=""),
        key({"x": 1}, project="a"),
        key({"x": 1}, project="a", generation=1),
        key({"x": 1}, generation=1),
        key({"x": 1, "y": 1}),
        key({"x": 1}, source=source_of(params={"q": "{{ x }}", "r": "1"})),
    }
    assert len(keys) == 7


def test_secrets_are_no_part_of_the_key() -> None:
    assert key({"x": 1}, {"token": "a"}) == key({"x": 1}, {"token": "b"}) == key({"x": 1})


def test_env_variables_that_vary_env_names_are_in_the_key_by_value_and_presence() -> None:
    varying = source_of(params={"q": "{{ x }}"}, caching={"vary_env": ["tenant", "region"]})
    envs: list[dict[str, Any]] = [
        {},
        {"tenant": None},
        {"tenant": "a"},
        {"tenant": "b"},
        {"region": "a"},
        {"tenant": "a", "region": "a"},
    ]
    assert len({key({"x": 1}, env, varying) for env in envs}) == len(envs)
    assert key({"x": 1}, {"tenant": "a", "other": 1}, varying) == key({"x": 1}, {"tenant": "a"}, varying)


def test_a_kept_secret_that_vary_env_names_is_in_the_key_by_source_and_version() -> None:
    varying = source_of(params={"q": "{{ x }}"}, caching={"vary_env": ["tenant"]})
    one, other = UUID(int=1), UUID(int=2)
    refs = [
        SecretRef(one, "variable", "tenant", 1),
        SecretRef(one, "variable", "tenant", 2),
        SecretRef(one, "credential", "tenant", 1),
        SecretRef(other, "variable", "tenant", 1),
    ]
    assert len({key({"x": 1}, {"tenant": ref}, varying) for ref in refs}) == len(refs)
    assert key({"x": 1}, {"tenant": refs[0]}, varying) == key({"x": 1}, {"tenant": SecretRef(*refs[0])}, varying)
    assert key({"x": 1}, {"tenant": refs[0]}) == key({"x": 1}, {"tenant": refs[1]})


def test_timeouts_and_retries_are_no_part_of_the_key() -> None:
    assert key({"x": 1}, source=source_of(params={"q": "{{ x }}"}, timeout=5, retry={"max_retries": 2})) == key({"x": 1})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)
objects = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=5)


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(item, order)) for name, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(objects, st.randoms(use_true_random=False))
def test_the_order_of_parameters_never_changes_the_key(params: dict[str, Any], order: random.Random) -> None:
    params["x"] = 1
    assert key(shuffled(params, order)) == key(params)


def exact(value: Any) -> Any:
    """A form that is equal only for the same JSON: 1, 1.0 and true differ, as do 0.0 and -0.0."""
    if isinstance(value, dict):
        return frozenset((name, exact(item)) for name, item in value.items())
    if isinstance(value, list):
        return tuple(exact(item) for item in value)
    return type(value).__name__, repr(value)


@settings(deadline=None)
@given(objects, objects)
def test_different_parameters_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    one["x"] = other["x"] = 1
    assert (key(one) == key(other)) == (exact(one) == exact(other))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_and_long_integers_beyond_the_fast_encoder_have_keys() -> None:
    assert key({"x": nested(300)}) != key({"x": nested(301)})
    assert key({"x": 10**30, "y": 1}) == key({"y": 1, "x": 10**30})


@pytest.mark.parametrize("value", [nested(100_000), "\ud800", 10**5000], ids=["deep", "surrogate", "5000 digits"])
def test_parameters_without_a_canonical_form_are_refused(value: Any) -> None:
    with pytest.raises(CallerError, match="configured_params") as caught:
        key({"x": value})
    assert caught.value.code == "INVALID_REQUEST"


def test_all_missing_variables_are_named_with_their_members_in_one_message() -> None:
    source = source_of(url="http://{{ env.host }}/{{ a }}", headers={"T": "Bearer {{ a }}{{ b }}"}, body={"c": {"param": "c"}})
    with pytest.raises(CallerError) as caught:
        make_plan(source, {"b": "s3cret", "host": "x"}, {})
    assert caught.value.code == "MISSING_VARIABLE"
    assert caught.value.message == (
        "No value is given for env.host (in data_source_spec.source.url); "
        "a (in data_source_spec.source.url, data_source_spec.source.headers.T); "
        "c (in data_source_spec.source.body.c)"
    )


def test_a_hole_is_filled_by_parameter_or_env_and_null_is_a_value() -> None:
    source = source_of(params={"a": "{{ a }}", "b": "{{ b }}", "c": "{{ env.c }}"})
    assert make_plan(source, {"a": None}, {"b": None, "c": None}).key


def test_an_env_variable_does_not_follow_from_a_parameter_of_its_name() -> None:
    with pytest.raises(CallerError, match=r"env\.c"):
        make_plan(source_of(params={"c": "{{ env.c }}"}), {"c": 1}, {})


def test_credentials_of_the_four_reserved_names_may_be_present() -> None:
    assert key({"x": 1}, {"CLIENT_ID": "a", "CLIENT_SECRET": "b", "USERNAME": "c", "PASSWORD": "d"}) == key({"x": 1})


def test_values_are_not_shown_by_repr() -> None:
    assert "s3cret" not in repr(make_plan(SOURCE, {"x": "s3cret"}, {"t": "s3cret"}))
