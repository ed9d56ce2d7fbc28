"""What an answer can be asked for again by: validators as they came, conditions made of them."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from broker_edge.core.exchange import DataObject
from broker_edge.core.source import RequestTemplate, parse_source
from broker_edge.core.validators import conditions_of, confirms, etag_of, last_modified_of

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


def item(etag: str | None = None, last_modified: str | None = None) -> DataObject:
    return DataObject(
        *(uuid.uuid4(), uuid.uuid4(), "key", b"", 0.0, None, "JSON", 200),
        reusable=True,
        etag=etag,
        last_modified=last_modified,
    )


def template(method: str = "GET", **headers: str) -> RequestTemplate:
    source = {"url": "http://bureau.test/", "method": method, "headers": headers}
    return parse_source(json.dumps({"data_source_id": str(uuid.uuid4()), "name": "x", "source": source}).encode()).request


@pytest.mark.parametrize("tag", ['"v1"', 'W/"v1"', '""', '"a b"'.replace(" ", "!"), ' "v1"\t'])
def test_an_entity_tag_is_kept_as_it_came(tag: str) -> None:
    assert etag_of({"etag": tag}) == tag.strip()


@pytest.mark.parametrize(
    "tag", ["", "v1", "W/v1", '"v1', '"v"1"', '"v1", "v2"', 'w/"v1"', '"a b"', '"é"', '"a\r\nX: y"', f'"{"x" * 1001}"', "*"]
)
def test_what_is_no_entity_tag_is_never_sent_back(tag: str) -> None:
    assert etag_of({"etag": tag}) is None


@pytest.mark.parametrize("date", [DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_a_date_is_kept_as_it_came(date: str) -> None:
    assert last_modified_of({"last-modified": f" {date} "}) == date


@pytest.mark.parametrize(
    "date", ["", "yesterday", "0", f"{DATE}\r\nX: y", f"{DATE}, {DATE}, {DATE}", "Wed, 99 Oct 2015 07:28:00 GMT"]
)
def test_what_is_no_date_is_never_sent_back(date: str) -> None:
    assert last_modified_of({"last-modified": date}) is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_kept_answer_is_asked_for_by_all_that_it_came_with(method: str) -> None:
    both = (("If-None-Match", '"v1"'), ("If-Modified-Since", DATE))
    assert conditions_of(item('"v1"', DATE), template(method)) == both
    assert conditions_of(item('"v1"'), template(method)) == both[:1]
    assert conditions_of(item(None, DATE), template(method)) == both[1:]
    assert conditions_of(item(), template(method)) == ()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_changes_things_is_not_made_conditional(method: str) -> None:
    assert conditions_of(item('"v1"', DATE), template(method)) == ()


@pytest.mark.parametrize("name", ["If-None-Match", "if-modified-since", "IF-MATCH", "If-Unmodified-Since", "If-Range", "Range"])
def test_a_spec_s_own_conditions_stand_alone(name: str) -> None:
    assert conditions_of(item('"v1"', DATE), template(**{name: "x"})) == ()


@pytest.mark.parametrize(
    ("kept", "headers", "answer"),
    [
        ('"v1"', {}, True),
        ('"v1"', {"etag": '"v1"'}, True),
        ('W/"v1"', {"etag": '"v1"'}, True),
        ('"v1"', {"etag": '"v2"'}, False),
        (None, {"etag": '"v2"'}, True),
        ('"v1"', {"etag": "nonsense"}, True),
    ],
)
def test_a_304_speaks_of_the_version_that_it_names(kept: str | None, headers: dict[str, Any], answer: bool) -> None:
    assert confirms(item(kept, DATE), headers) is answer
