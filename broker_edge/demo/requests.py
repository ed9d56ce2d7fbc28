"""The sample data sources that point at the sample bureau, and the commands that ask for them: what `broker-edge demo` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOAP_REQUEST = (
    '<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body>'
    "<lookup><tax_id>{{ tax_id }}</tax_id></lookup></soap:Body></soap:Envelope>"
)
IDS = {
    "credit_score": "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c01",
    "catalogue": "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c02",
    "company_registry": "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c03",
    "notice": "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c04",
}
RUNS = tuple(f"7d1c2b3a-0000-4000-8000-00000000000{n}" for n in range(1, 7))


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to paste: `title` says what to expect, `curl` is a complete POSIX shell command."""

    title: str
    curl: str


def sample_specs(bureau_url: str) -> dict[str, dict[str, Any]]:
    """Name -> complete `data_source_spec` against a bureau at `bureau_url` (no slash at the end), kept for an hour."""
    sources: dict[str, dict[str, Any]] = {
        "credit_score": {"url": f"{bureau_url}/score/{{{{ tax_id }}}}", "response_type": "JSON"},
        "catalogue": {"url": f"{bureau_url}/catalogue.csv", "params": {"page": "{{ page }}"}, "response_type": "CSV"},
        "company_registry": {
            "url": f"{bureau_url}/registry",
            "method": "POST",
            "headers": {"Content-Type": "text/xml; charset=utf-8"},
            "body": {"xml": SOAP_REQUEST},
            "response_type": "XML",
        },
        "notice": {"url": f"{bureau_url}/notice", "response_type": "PLAIN_TEXT"},
    }
    return {
        name: {"data_source_id": IDS[name], "name": name, "source": source, "caching": {"enabled": True, "ttl": 3600}}
        for name, source in sources.items()
    }


def fetch_request(spec: Mapping[str, Any], params: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """The body of POST /v1/fetch-data that asks for `spec` with `params`."""
    return {"data_source_spec": dict(spec), "configured_params": dict(params), "run_id": run_id}


def commands(edge_url: str, bureau_url: str, program: str = "broker-edge") -> list[Command]:
    """What to paste against an edge at `edge_url` (no slash at the end): a miss, a hit, the other formats, where to look.

    `program` is how a shell calls this package's command.
    """
    specs = sample_specs(bureau_url)
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("A miss: the edge asks the bureau for a credit score (origin REQUEST)", "credit_score", {"tax_id": "01234567890"}),
        (
            "A hit: another run asks the same and the bureau is left alone (origin CACHE)",
            "credit_score",
            {"tax_id": "01234567890"},
        ),
        ("CSV: a catalogue as a list of objects", "catalogue", {"page": 1}),
        ("SOAP: a company register, XML in and XML out (in ISO-8859-1)", "company_registry", {"tax_id": "01234567890"}),
        ("Plain text: a notice", "notice", {}),
    ]
    fetches = [
        Command(title, _curl(edge_url, "/v1/fetch-data", _layout(fetch_request(specs[name], params, run))))
        for (title, name, params), run in zip(asked, RUNS, strict=False)
    ]
    return fetches + _by_name(edge_url, program) + _looks(edge_url)


def _by_name(edge_url: str, program: str) -> list[Command]:
    """The same sources, registered: whoever asks needs a name and no spec."""
    body = {"data_source_name": "credit_score", "configured_params": {"tax_id": "01234567890"}, "run_id": RUNS[-1]}
    quoted = shlex.quote(edge_url)
    return [
        Command("By name: the sample sources are registered too", _curl(edge_url, "/internal/data-broker", json.dumps(body))),
        Command(
            "By name, from the command line: the value, and where it came from",
            f"{program} fetch credit_score tax_id=01234567890 --url {quoted}",
        ),
        Command("Which sources there are", f"{program} sources list --url {quoted}"),
    ]


def _looks(edge_url: str) -> list[Command]:
    return [
        Command("Where to look: is it alive", f"curl -sS {shlex.quote(edge_url + '/healthz')}"),
        Command("Where to look: what it counted", f"curl -sS {shlex.quote(edge_url + '/metrics')} | grep '^broker_edge_'"),
        Command("Where to look: its interface; better in a browser", f"curl -sS {shlex.quote(edge_url + '/docs')}"),
    ]


def _curl(edge_url: str, path: str, body: str) -> str:
    url = shlex.quote(f"{edge_url}{path}")
    return f"curl -sS {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _layout(body: Mapping[str, Any]) -> str:
    """JSON with one line for each member that a reader looks for, instead of one long line or forty short ones."""
    spec = body["data_source_spec"]
    inner = ",\n    ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in spec.items())
    rest = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in body.items() if name != "data_source_spec")
    return f'{{\n  "data_source_spec": {{\n    {inner}\n  }},\n  {rest}\n}}'
