"""What the code knows and what its pages say are the same."""

from __future__ import annotations

import json
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from broker_edge.api import intake, schemas
from broker_edge.api.envelope import problem, reply
from broker_edge.core import spec
from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import TraceContext, Trail
from broker_edge.errors import CODES, EdgeError
from broker_edge.settings import PREFIX, Settings
from broker_edge.telemetry.metrics import COUNTERS, DOCUMENTED, GAUGES, HISTOGRAMS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def rows(text: str, pattern: str) -> dict[str, list[str]]:
    """The table rows whose first cell is the code `pattern`, by that cell."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(rf"^\| `?({pattern})`? \| (.*) \|$", text, re.MULTILINE):
        assert match[1] not in found, f"{match[1]} stands there twice"
        found[match[1]] = match[2].split(" | ")
    return found


def shown(name: str) -> str:
    """A setting's default as the page says it."""
    default = Settings.model_fields[name].default
    if default is None:
        return "unset"
    return "empty" if default == () else f"`{default}`"


def test_every_setting_is_in_the_readme_as_it_is() -> None:
    expected = {PREFIX + name.upper(): [shown(name), field.description] for name, field in Settings.model_fields.items()}
    assert rows(README, rf"{PREFIX}[A-Z_]+") == expected


def test_every_error_code_is_in_the_readme_as_it_is() -> None:
    expected = {
        code: [str(kind.status), kind.source, "yes" if kind.retryable else "no", kind.title] for code, kind in CODES.items()
    }
    assert rows(README, rf"(?!{PREFIX})[A-Z]+(?:_[A-Z]+)*") == expected


def test_every_metric_is_in_the_readme_as_it_is() -> None:
    labels = {name: row[0] for table in (COUNTERS, HISTOGRAMS, GAUGES) for name, row in table.items()}
    expected = {name: [", ".join(f"`{label}`" for label in labels[name]) or "-", text] for name, text in DOCUMENTED.items()}
    assert rows(README, r"broker_edge_[a-z_]+") == expected


def test_metrics_are_named_as_the_field_does() -> None:
    assert all(name.endswith("_total") for name in COUNTERS)
    assert not any(name.endswith("_total") for name in (*HISTOGRAMS, *GAUGES))
    assert all(name.startswith("broker_edge_") for name in DOCUMENTED)
    assert all(name.endswith("_seconds") for name in HISTOGRAMS)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in project["dependencies"]}
    section = ARCHITECTURE.split("## Dependencies")[1].split("\n## ")[0]
    assert set(rows(section, r"[a-z0-9-]+")) - {"package"} == names


PAIRS: list[tuple[type[BaseModel], type[msgspec.Struct]]] = [
    (schemas.FetchDataRequest, intake.Body),
    (schemas.DataBrokerRequest, intake.NamedBody),
    (schemas.CredentialRef, intake.CredentialRef),
    (schemas.DataSourceSpec, spec.Spec),
    (schemas.HttpSource, spec.Source),
    (schemas.Auth, spec.Auth),
    (schemas.Retry, spec.Retry),
    (schemas.Caching, spec.Caching),
    (schemas.Amount, spec.Amount),
    (schemas.Budget, spec.Budget),
]


@pytest.mark.parametrize(("model", "struct"), PAIRS, ids=lambda value: getattr(value, "__name__", None))
def test_the_openapi_page_names_the_members_that_are_read(model: type[BaseModel], struct: type[msgspec.Struct]) -> None:
    assert set(model.model_fields) == set(struct.__struct_fields__)


@pytest.mark.parametrize(("model", "struct"), PAIRS, ids=lambda value: getattr(value, "__name__", None))
def test_the_openapi_page_requires_what_is_required(model: type[BaseModel], struct: type[msgspec.Struct]) -> None:
    required = {field.name for field in msgspec.structs.fields(struct) if field.required}
    assert {name for name, field in model.model_fields.items() if field.is_required()} == required


def closed() -> Trail:
    trail = Trail(TraceContext(1, 2), 1.0, lambda: 3)
    trail.why = "uri-miss"
    return trail


@pytest.mark.parametrize("origin", ["CACHE", "REQUEST"])
def test_the_openapi_page_names_the_members_of_a_reply(origin: Any) -> None:
    trail = closed()
    trail.deliver(Fetched(Entry(uuid.UUID(int=1), 1.0, b"[1]"), "key", origin, 1.0, 2.0), 3.0)
    body = json.loads(b"".join(reply(trail, 60)[1]))
    assert set(body) == set(schemas.FetchDataReply.model_fields)
    schemas.FetchDataReply.model_validate(body)


@pytest.mark.parametrize("status", [None, 503])
def test_the_openapi_page_names_the_members_of_a_failure(status: int | None) -> None:
    error = EdgeError("UPSTREAM_STATUS", "no", upstream_status=status)
    body = json.loads(problem(error, closed())[1])
    optional = set() if status else {"upstream_status"}
    assert set(body) == set(schemas.Problem.model_fields) - optional
    assert set(body["error"]) == set(schemas.FetchError.model_fields) - optional
    schemas.Problem.model_validate(body)
