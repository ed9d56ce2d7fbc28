"""`broker-edge sources`: data sources as documents (apply, export), and by name or id (list, show, test, publish, delete)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import typer

from broker_edge.backends.edge_client import EdgeClient
from broker_edge.cli_fetch import AsJson, Params, Project, Url, edge_at, parameters
from broker_edge.cli_screen import aside, progress, say, say_diff, say_json, say_table
from broker_edge.cli_start import fail
from broker_edge.errors import EdgeError
from broker_edge.manifests.applying import SOURCES, carry_out, foretold, found, records
from broker_edge.manifests.changes import Change, Outcome, Record, compare, described, exported
from broker_edge.manifests.reading import Document, Refusal, read_documents
from broker_edge.manifests.yaml_text import dump_document
from broker_edge.settings import environment_value

sources = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Data sources by name.")

NameOrId = Annotated[str, typer.Argument(help="The data source's name, or its id", metavar="NAME|ID")]
T = TypeVar("T")

_DONE = {"create": "created", "update": "updated", "unchanged": "unchanged"}
_FORETOLD = {"create": "would be created", "update": "would be updated", "unchanged": "unchanged"}


def _asked(url: str | None, project: UUID | None, ask: Callable[[EdgeClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with edge_at(url, project) as edge:
            return await ask(edge)

    return asyncio.run(run())


@sources.command()
def apply(
    files: Annotated[list[str], typer.Option("-f", "--file", help="A file, a directory, or - for standard input; repeatable")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen and change nothing")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Publish what is a draft, as `status: PUBLISHED` does")] = False,
    url: Url = None,
    project: Project = None,
    as_json: AsJson = False,
) -> None:
    """Make data sources what YAML or JSON documents say: missing ones are created, others updated; the rest is left alone."""
    try:
        documents = read_documents(files, environment_value, str(project) if project else None)
    except Refusal as error:
        fail(str(error))
    for document in documents:
        for member in document.ignored:
            aside(f"{document.place}: {member}: is not known: nothing reads it", "yellow")
    outcomes: list[Outcome] = []

    async def ask(edge: EdgeClient) -> None:
        await _apply(edge, documents, outcomes, dry_run=dry_run, publish=publish, as_json=as_json)

    try:
        _asked(url, project, ask)
    finally:  # what was done is told of a command that failed half-way too
        if as_json:
            say_json({"dry_run": dry_run, "sources": [asdict(outcome) for outcome in outcomes]})


async def _apply(
    edge: EdgeClient, documents: list[Document], outcomes: list[Outcome], *, dry_run: bool, publish: bool, as_json: bool
) -> None:
    changes = compare_or_fail(documents, await records(edge), publish)
    with progress("applying", len(changes)) as advance:
        for change in changes:
            outcomes.append(foretold(change) if dry_run else await _carried_out(edge, change, len(outcomes), len(changes)))
            if not as_json:
                _tell(outcomes[-1], dry_run)
            advance()


def compare_or_fail(documents: list[Document], there: list[Record], publish: bool) -> list[Change]:
    try:
        return compare(documents, there, publish=publish)
    except Refusal as error:
        fail(str(error))


async def _carried_out(edge: EdgeClient, change: Change, done: int, total: int) -> Outcome:
    try:
        return await carry_out(edge, change)
    except EdgeError as error:
        aside(f"{done} of {total} documents were applied; the rest was left alone")
        fail(f"{change.document.place}: {error.code}: {error.message}")


def _tell(outcome: Outcome, dry_run: bool) -> None:
    words = [(_FORETOLD if dry_run else _DONE)[outcome.action]]
    if outcome.publish:
        words.append("would be published" if dry_run else "published")
    say(f"{outcome.name}: {', '.join(words)}", "bold" if outcome.changed else "dim")
    say_diff(outcome.diff)
    for kind, secrets in (("variable", outcome.variables), ("credential", outcome.credentials)):
        for name, state in secrets.items():
            say(f"  {kind} {name}: {state}", "dim" if state == "unchanged" else "green")


@sources.command(name="list")
def list_sources(
    status: Annotated[Literal["DRAFT", "PUBLISHED", "ARCHIVED"] | None, typer.Option(help="Those of one status")] = None,
    include_archived: Annotated[bool, typer.Option("--include-archived", help="Archived ones too")] = False,
    url: Url = None,
    project: Project = None,
    as_json: AsJson = False,
) -> None:
    """List the data sources."""
    query = {"status": status, "include_archived": "true" if include_archived or status == "ARCHIVED" else None}
    there = _asked(url, project, lambda edge: records(edge, **query))
    if as_json:
        say_json(there)
        return
    rows = [[one["name"], one["status"], one["data_source_id"], str(one["last_updated_at"])] for one in there]
    say_table(["NAME", "STATUS", "ID", "LAST CHANGE"], sorted(rows))


@sources.command()
def show(name: NameOrId, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Show a data source, and which of its secrets are set; never their values."""
    record, secrets = _asked(url, project, lambda edge: _whole(edge, name))
    if as_json:
        say_json({**record, "secrets": secrets})
        return
    told = {name: record[name] for name in ("data_source_id", "status", "generation") if name in record}
    told |= {name: record[name] for name in ("created_at", "last_updated_at", "runtime_params") if record.get(name)}
    text = dump_document({**described(record), **told})
    for kind, metas in secrets.items():
        text += dump_document({kind: {_label(meta): "set" if meta["is_set"] else "not set" for meta in metas}}) if metas else ""
    say(text.rstrip("\n"))


async def _whole(edge: EdgeClient, name: str) -> tuple[Record, dict[str, list[Any]]]:
    record = await found(edge, name)
    if record["status"] == "ARCHIVED":
        return record, {}
    path = f"{SOURCES}/{record['data_source_id']}"
    return record, {kind: await edge.call("GET", f"{path}/{kind}") for kind in ("variables", "credentials")}


def _label(meta: Mapping[str, Any]) -> str:
    return str(meta.get("name") or meta["credential_type"])


@sources.command(name="test")
def probe(name: NameOrId, params: Params = None, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Call the upstream once and show what went out and came back; nothing is cached, secrets are redacted."""
    given = parameters(params or ())

    async def ask(edge: EdgeClient) -> Any:
        record = await found(edge, name)
        with progress(f"testing {record['name']}"):
            return await edge.call("POST", f"{SOURCES}/{record['data_source_id']}/test", {"configured_params": given})

    report = _asked(url, project, ask)
    if as_json:
        say_json(report)
    else:
        _tell_report(report)
    if report.get("error"):
        raise typer.Exit(1)


def _tell_report(report: Mapping[str, Any]) -> None:
    good = not report.get("error")
    say(f"{report['status_code'] or 'no answer'} in {report['response_time_ms']:.0f} ms", "green" if good else "red")
    if not good:
        say(str(report["error"]), "red")
    titles = {"request_url": "asked", "request_headers": "with", "response_headers": "answered with", "response_body": "body"}
    for member, title in titles.items():
        if report.get(member):
            say(dump_document({title: report[member]}).rstrip("\n"))


@sources.command()
def publish(name: NameOrId, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Publish a draft: from then on only description, metadata, caching, timeout and retry change."""

    async def ask(edge: EdgeClient) -> Any:
        return await edge.call("POST", f"{SOURCES}/{(await found(edge, name))['data_source_id']}/publish")

    record = _asked(url, project, ask)
    if as_json:
        say_json(record)
    else:
        say(f"{name}: published")


@sources.command()
def delete(
    name: NameOrId,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask")] = False,
    url: Url = None,
    project: Project = None,
    as_json: AsJson = False,
) -> None:
    """Delete a draft with its secrets, or archive a published data source: it serves nothing any more, its objects stay."""

    async def ask(edge: EdgeClient) -> tuple[Record, str]:
        record = await found(edge, name)
        done = "archived" if record["status"] == "PUBLISHED" else "deleted"
        if not yes and sys.stdin.isatty():
            typer.confirm(f"{record['name']} will be {done}. Go on?", abort=True)
        await edge.call("DELETE", f"{SOURCES}/{record['data_source_id']}")
        return record, done

    record, done = _asked(url, project, ask)
    if as_json:
        say_json({"data_source_id": record["data_source_id"], "name": record["name"], "action": done})
    else:
        say(f"{record['name']}: {done}")


@sources.command()
def export(
    names: Annotated[list[str] | None, typer.Argument(help="Which ones; unset: all that aren't archived")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; unset: standard output")] = None,
    url: Url = None,
    project: Project = None,
) -> None:
    """Print data sources as YAML that `apply` takes back; of secrets there are only names."""

    async def ask(edge: EdgeClient) -> list[Record]:
        return [await found(edge, name) for name in names] if names else await records(edge)

    text = "---\n".join(exported(record) for record in sorted(_asked(url, project, ask), key=lambda one: str(one["name"])))
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")
