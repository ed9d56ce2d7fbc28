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
from broker_edge.cli_fetch import ALLOW, AsJson, Params, Project, Url, edge_at, parameters, refusal_line
from broker_edge.cli_screen import aside, progress, say, say_diff, say_json, say_table
from broker_edge.cli_start import fail
from broker_edge.errors import EdgeError
from broker_edge.manifests.applying import SOURCES, Secrets, carry_out, foretold, found, names_set, records, secrets_of
from broker_edge.manifests.changes import BESIDE, UNSET, Change, Outcome, Record, compare, described, exported
from broker_edge.manifests.reading import Document, Refusal, read_documents
from broker_edge.manifests.yaml_text import dump_document
from broker_edge.settings import environment_value

sources = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Data sources by name.")

NameOrId = Annotated[str, typer.Argument(help="The data source's name, or its id", metavar="NAME|ID")]
T = TypeVar("T")

_STATES = {"unchanged": "dim", BESIDE: "dim", UNSET: "yellow"}
_DONE = {"create": "created", "update": "updated", "unchanged": "unchanged"}
_FORETOLD = {"create": "would be created", "update": "would be updated", "unchanged": "unchanged"}


def _asked(url: str | None, project: UUID | None, ask: Callable[[EdgeClient], Awaitable[T]], as_json: bool = False) -> T:
    async def run() -> T:
        async with edge_at(url, project, as_json) as edge:
            return await ask(edge)

    return asyncio.run(run())


@sources.command()
def apply(
    files: Annotated[list[str], typer.Option("-f", "--file", help="A file, a directory, or - for standard input; repeatable")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen and change nothing")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Publish what is a draft, as `status: PUBLISHED` does")] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Go on where a document has members that this version does not know")
    ] = False,
    url: Url = None,
    project: Project = None,
    as_json: AsJson = False,
) -> None:
    """Make data sources what YAML or JSON documents say: missing ones are created, others updated; the rest is left alone."""
    try:
        documents = read_documents(files, environment_value, str(project) if project else None, allow_unknown=allow_unknown)
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
            if dry_run:
                outcomes.append(foretold(change, await secrets_of(edge, change.record) if change.record else None))
            else:
                outcomes.append(await _carried_out(edge, change, len(outcomes), len(changes)))
            if not as_json:
                _tell(outcomes[-1], dry_run)
            _warn(outcomes[-1])
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
        fail(f"{change.document.place}: {refusal_line(error)}")


def _tell(outcome: Outcome, dry_run: bool) -> None:
    words = [(_FORETOLD if dry_run else _DONE)[outcome.action]]
    if outcome.publish:
        words.append("would be published" if dry_run else "published")
    say(f"{outcome.name}: {', '.join(words)}", "bold" if outcome.changed else "dim")
    say_diff(outcome.diff)
    for kind, secrets in (("variable", outcome.variables), ("credential", outcome.credentials)):
        for name, state in secrets.items():
            say(f"  {kind} {name}: {state}", _STATES.get(state, "green"))


def _warn(outcome: Outcome) -> None:
    """Secrets may come after publication, so that it is done; but until they do, nothing can be fetched."""
    unset = [name for name, state in (*outcome.variables.items(), *outcome.credentials.items()) if state == UNSET]
    if unset and outcome.publish:
        aside(f"{outcome.name}: published, fetches may fail until these are set: {', '.join(unset)}", "yellow")


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
    there = _asked(url, project, lambda edge: records(edge, **query), as_json)
    if as_json:
        say_json(there)
        return
    rows = [[one["name"], one["status"], one["data_source_id"], str(one.get("last_updated_at", "-"))] for one in there]
    say_table(["NAME", "STATUS", "ID", "LAST CHANGE"], sorted(rows))


@sources.command()
def show(name: NameOrId, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Show a data source, and which of its secrets are set; never their values."""
    record, secrets = _asked(url, project, lambda edge: _whole(edge, name), as_json)
    if as_json:
        say_json({**record, "secrets": secrets})
        return
    told = {name: record[name] for name in ("data_source_id", "status", "generation") if name in record}
    told |= {name: record[name] for name in ("created_at", "last_updated_at", "runtime_params") if record.get(name)}
    text = dump_document({**described(record), **told})
    for kind, metas in secrets.items():
        text += dump_document({kind: {_label(meta): "set" if meta["is_set"] else "not set" for meta in metas}}) if metas else ""
    say(text.rstrip("\n"))


async def _whole(edge: EdgeClient, name: str) -> tuple[Record, Secrets]:
    record = await found(edge, name, archived=True)
    return record, await secrets_of(edge, record)


def _label(meta: Mapping[str, Any]) -> str:
    return str(meta.get("name") or meta["credential_type"])


@sources.command(name="test")
def probe(name: NameOrId, params: Params = None, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Make a real call, which costs what a call costs, and show it: nothing is cached, secrets are redacted."""
    given = parameters(params or ())

    async def ask(edge: EdgeClient) -> Any:
        record = await found(edge, name)
        with progress(f"testing {record['name']}"):
            return await edge.call("POST", f"{SOURCES}/{record['data_source_id']}/test", {"configured_params": given})

    report = _asked(url, project, ask, as_json)
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
    if report.get("error_code") == "TARGET_DENIED":
        aside(ALLOW)
    titles = {"request_url": "asked", "request_headers": "with", "response_headers": "answered with", "response_body": "body"}
    for member, title in titles.items():
        if report.get(member):
            say(dump_document({title: report[member]}).rstrip("\n"))


@sources.command()
def publish(name: NameOrId, url: Url = None, project: Project = None, as_json: AsJson = False) -> None:
    """Publish a draft: from then on only description, metadata, caching, timeout and retry change."""

    async def ask(edge: EdgeClient) -> Any:
        return await edge.call("POST", f"{SOURCES}/{(await found(edge, name))['data_source_id']}/publish")

    record = _asked(url, project, ask, as_json)
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

    if not yes and not sys.stdin.isatty():
        fail("sources delete asks before it acts, and nobody can answer here: pass --yes", 2)

    async def ask(edge: EdgeClient) -> tuple[Record, str]:
        record = await found(edge, name)
        done = "archived" if record["status"] == "PUBLISHED" else "deleted"
        if not yes:
            typer.confirm(f"{record['name']} will be {done}. Go on?", abort=True, err=as_json)
        await edge.call("DELETE", f"{SOURCES}/{record['data_source_id']}")
        return record, done

    record, done = _asked(url, project, ask, as_json)
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

    async def ask(edge: EdgeClient) -> list[str]:
        there = [await found(edge, name) for name in names] if names else await records(edge)
        with progress("exporting", len(there)) as advance:
            return [await _exported(edge, record, advance) for record in sorted(there, key=lambda one: str(one["name"]))]

    text = "---\n".join(_asked(url, project, ask))
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")


async def _exported(edge: EdgeClient, record: Record, advance: Callable[[], None]) -> str:
    secrets = await secrets_of(edge, record)
    advance()
    return exported(record, *(sorted(names_set(secrets, kind)) for kind in ("variables", "credentials")))
