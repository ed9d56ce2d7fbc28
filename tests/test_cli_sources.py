"""`broker-edge sources` and `broker-edge fetch`, over an edge in the command's own process and over one that runs elsewhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import sqlite3
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from broker_edge.cli import app
from broker_edge.settings import PREFIX
from tests import servers
from tests.edges import Bureau, EdgeProcess, edge_process, http_reply, json_reply
from tests.upstreams import Received

CANARY = "s3cr3t-canary-94107"
PROJECT = "9d1c2b3a-0000-4000-8000-00000000000f"
TAX_ID = "01234567890"


def score(got: Received) -> bytes:
    path = got.line.split()[1]
    if path.endswith("/broken"):
        return http_reply(b"no", 503)
    if path.startswith("/notice"):
        return http_reply(b"two\nlines", 200, "Content-Type: text/plain")
    return json_reply({"tax_id": path.rpartition("/")[2], "ledger_id": 185265683303854323630891050626})


@pytest.fixture
async def scores() -> AsyncIterator[Bureau]:
    async with Bureau(score).running() as running:
        yield running


class CommandLine:
    """Runs commands in a thread, while the loop runs the bureau; over the database of `directory` unless they name a URL."""

    def __init__(self, directory: Path, bureau: Bureau) -> None:
        self.directory = directory
        self.bureau = bureau
        self.environment = {
            f"{PREFIX}DATA_DIR": str(directory / "data"),
            f"{PREFIX}ALLOWED_PRIVATE_HOSTS": f"127.0.0.1:{bureau.port}",
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }

    async def __call__(self, *words: str, code: int = 0, stdin: str | None = None, **environment: str) -> Result:
        def run() -> Result:
            return CliRunner().invoke(
                app, list(words), input=stdin, env={**self.environment, **environment}, catch_exceptions=False
            )

        done = await asyncio.to_thread(run)
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    def spec(self, name: str = "credit_score", path: str = "/score/{{ tax_id }}", **members: Any) -> dict[str, Any]:
        source = {"url": f"{self.bureau.url}{path}", "response_type": "JSON", **members.pop("source", {})}
        return {"name": name, "source": source, "caching": {"enabled": True, "ttl": 3600}, **members}

    def write(self, *documents: Mapping[str, Any], name: str = "sources.yaml") -> str:
        path = self.directory / name
        path.write_text("\n---\n".join(json.dumps(one) for one in documents))
        return str(path)

    async def listed(self, *words: str) -> dict[str, Any]:
        found = json.loads((await self("sources", "list", "--json", *words)).stdout)
        return {record["name"]: record for record in found}


@pytest.fixture(autouse=True)
def _no_words_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that another test left behind may log to a closed stream: what logging says of that is no output of ours."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
async def cli(tmp_path: Path, scores: Bureau) -> CommandLine:
    line = CommandLine(tmp_path, scores)
    await line("migrate")
    return line


@pytest.fixture(params=["embedded", "servers"])
def served(request: pytest.FixtureRequest, tmp_path: Path, scores: Bureau) -> Iterator[tuple[CommandLine, EdgeProcess]]:
    """An edge process, and a command line over the same database."""
    line = CommandLine(tmp_path, scores)
    values: dict[str, str] = {}
    if request.param == "servers":
        values["redis_url"] = request.getfixturevalue("redis_server").url
        values["database_url"] = request.getfixturevalue("postgres_server").create()
    line.environment |= {f"{PREFIX}{name.upper()}": value for name, value in values.items()}
    with edge_process(tmp_path / "data", scores.port, **values) as running:
        yield line, running


def diff_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("+", "-"))]


async def test_apply_creates_updates_and_then_leaves_alone(cli: CommandLine) -> None:
    file = cli.write(cli.spec(), cli.spec("notice", "/notice", source={"response_type": "PLAIN_TEXT"}))
    first = (await cli("sources", "apply", "-f", file)).stdout
    assert "credit_score: created" in first
    assert "notice: created" in first
    cli.write(cli.spec(description="a score"), cli.spec("notice", "/notice", source={"response_type": "PLAIN_TEXT"}))
    second = (await cli("sources", "apply", "-f", file)).stdout
    assert "credit_score: updated" in second
    assert diff_of(second)[2:] == ["+description: a score"]
    assert "notice: unchanged" in second
    generations = {name: record["generation"] for name, record in (await cli.listed()).items()}
    third = (await cli("sources", "apply", "-f", file)).stdout
    assert third.splitlines() == ["credit_score: unchanged", "notice: unchanged"]
    assert {name: record["generation"] for name, record in (await cli.listed()).items()} == generations


async def test_a_dry_run_shows_everything_and_changes_nothing(cli: CommandLine) -> None:
    file = cli.write(cli.spec(variables={"token": CANARY}, credentials={"PASSWORD": CANARY}, status="PUBLISHED"))
    told = await cli("sources", "apply", "--dry-run", "-f", file)
    assert "credit_score: would be created, would be published" in told.stdout
    assert any("/score/" in line for line in diff_of(told.stdout))
    assert "variable token: given (compared when applied)" in told.stdout
    assert "credential PASSWORD: given (compared when applied)" in told.stdout
    assert CANARY not in told.output
    assert await cli.listed() == {}


async def test_secrets_are_set_once_and_never_shown(cli: CommandLine) -> None:
    source = {"headers": {"X-Token": "{{ env.token }}"}}
    given = {"variables": {"token": {"env": "A_TOKEN"}}, "credentials": {"PASSWORD": {"file": "password"}}}
    (cli.directory / "password").write_text(f"{CANARY}-2\n")
    file = cli.write(cli.spec(source=source, **given))
    first = await cli("sources", "apply", "-f", file, A_TOKEN=CANARY)
    assert "variable token: set" in first.stdout
    assert "credential PASSWORD: set" in first.stdout
    again = await cli("sources", "apply", "-f", file, A_TOKEN=CANARY)
    assert "variable token: unchanged" in again.stdout
    assert "credential PASSWORD: unchanged" in again.stdout
    changed = await cli("sources", "apply", "-f", file, A_TOKEN=f"{CANARY}-3")
    assert "variable token: set" in changed.stdout
    shown = await cli("sources", "show", "credit_score")
    assert "token: set" in shown.stdout
    assert "PASSWORD: set" in shown.stdout
    whole = await cli("sources", "show", "credit_score", "--json")
    assert [one["is_set"] for one in json.loads(whole.stdout)["secrets"]["variables"]] == [True]
    assert all(CANARY not in done.output for done in (first, again, changed, shown, whole))
    await cli("fetch", "credit_score", f"tax_id={TAX_ID}")
    assert ("X-Token", f"{CANARY}-3") in cli.bureau.calls[-1].headers


async def test_variables_that_a_document_does_not_name_stay(cli: CommandLine) -> None:
    file = cli.write(cli.spec(variables={"one": "a", "two": "b"}))
    await cli("sources", "apply", "-f", file)
    cli.write(cli.spec(variables={"two": "c"}))
    await cli("sources", "apply", "-f", file)
    shown = json.loads((await cli("sources", "show", "credit_score", "--json")).stdout)["secrets"]["variables"]
    assert {one["name"]: (one["is_set"], one["version"]) for one in shown} == {"one": (True, 1), "two": (True, 2)}


@pytest.mark.parametrize("words", [["--publish"], []], ids=["option", "member"])
async def test_apply_publishes(cli: CommandLine, words: list[str]) -> None:
    file = cli.write(cli.spec(**({} if words else {"status": "PUBLISHED"})))
    assert "credit_score: created, published" in (await cli("sources", "apply", "-f", file, *words)).stdout
    assert (await cli.listed())["credit_score"]["status"] == "PUBLISHED"
    assert (await cli("sources", "apply", "-f", file, *words)).stdout == "credit_score: unchanged\n"


async def test_apply_prints_json(cli: CommandLine) -> None:
    file = cli.write(cli.spec(variables={"token": CANARY}))
    done = await cli("sources", "apply", "-f", file, "--json", "--publish")
    told = json.loads(done.stdout)
    assert told["dry_run"] is False
    (source,) = told["sources"]
    assert uuid.UUID(source["data_source_id"])
    assert (source["name"], source["action"], source["publish"]) == ("credit_score", "create", True)
    assert source["variables"] == {"token": "set"}
    assert CANARY not in done.output


async def test_standard_input_is_applied(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", "-", stdin=json.dumps([cli.spec("a"), cli.spec("b")]))
    assert set(await cli.listed()) == {"a", "b"}


async def test_projects_are_apart(cli: CommandLine) -> None:
    file = cli.write(cli.spec())
    await cli("sources", "apply", "-f", file, "--project", PROJECT)
    assert await cli.listed() == {}
    assert (await cli.listed("--project", PROJECT))["credit_score"]["project_id"] == PROJECT
    assert "DATA_SOURCE_NOT_FOUND" in (await cli("fetch", "credit_score", "tax_id=1", code=1)).stderr
    await cli("fetch", "credit_score", "tax_id=1", "--project", PROJECT)


async def test_nothing_is_changed_where_one_document_is_refused(cli: CommandLine) -> None:
    file = cli.write(cli.spec(), cli.spec("bad", source={"url": "ftp://x/"}))
    done = await cli("sources", "apply", "-f", file, code=1)
    assert "sources.yaml, document 2: source.url" in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert await cli.listed() == {}


async def test_what_a_published_source_can_not_become_is_refused_before_anything_changes(cli: CommandLine) -> None:
    await cli("sources", "apply", "--publish", "-f", cli.write(cli.spec()))
    file = cli.write(cli.spec("other"), cli.spec(path="/elsewhere"))
    done = await cli("sources", "apply", "-f", file, code=1)
    assert "document 2 (credit_score): source.url can't change" in done.stderr
    assert set(await cli.listed()) == {"credit_score"}


async def test_an_id_that_is_taken_stops_the_command_and_says_how_far_it_got(cli: CommandLine) -> None:
    source_id = str(uuid.uuid4())
    file = cli.write(*(cli.spec(name, data_source_id=source_id) for name in ("first", "second")), cli.spec("third"))
    done = await cli("sources", "apply", "-f", file, code=1)
    assert "1 of 3 documents were applied" in done.stderr
    assert "document 2 (second): DATA_SOURCE_ALREADY_EXISTS" in done.stderr
    assert "first: created" in done.stdout
    assert set(await cli.listed()) == {"first"}


async def test_members_that_nobody_reads_are_said(cli: CommandLine) -> None:
    file = cli.write(cli.spec(cashing={"ttl": 1}))
    done = await cli("sources", "apply", "--dry-run", "--allow-unknown", "-f", file)
    assert "sources.yaml (credit_score): cashing: is not known" in done.stderr


async def test_a_member_that_nobody_reads_stops_the_command(cli: CommandLine) -> None:
    file = cli.write(cli.spec("good"), cli.spec(budget={"call": 10}))
    done = await cli("sources", "apply", "-f", file, code=1)
    assert "sources.yaml, document 2: budget.call: is not known" in done.stderr
    assert "--allow-unknown" in done.stderr
    assert await cli.listed() == {}


async def test_an_export_changes_nothing_when_it_is_applied(cli: CommandLine) -> None:
    soap = {
        "method": "POST",
        "headers": {"Content-Type": "text/xml"},
        "body": {"xml": "<a>\n  <b>{{ tax_id }}</b>\n</a>"},
        "response_type": "XML",
    }
    rich = cli.spec(
        source={"retry": {"max_retries": 2}, "auth": {"method": "basic"}, "headers": {"X": "{{ env.token }}", "Y": "0123"}},
        variables={"token": CANARY, "more": "1"},
        credentials={"USERNAME": "me", "PASSWORD": CANARY},
        cost_per_call={"amount": "3.50", "currency": "EUR"},
        billable=True,
        budget={"calls": 100},
        description="NO",
        metadata={"since": "2026-01-01"},
        status="PUBLISHED",
    )
    await cli("sources", "apply", "-f", cli.write(rich, cli.spec("soap", source=soap)))
    before = await cli.listed()
    exported = await cli("sources", "export", "-o", str(cli.directory / "all.yaml"))
    text = (cli.directory / "all.yaml").read_text()
    assert exported.stdout == ""
    assert CANARY not in text
    assert "token" in text
    again = await cli("sources", "apply", "-f", str(cli.directory / "all.yaml"))
    assert again.stdout.splitlines() == ["credit_score: unchanged", "soap: unchanged"]
    assert await cli.listed() == before
    elsewhere = await cli("sources", "apply", "--project", PROJECT, "-f", str(cli.directory / "all.yaml"))
    for secret in ("variable token", "variable more", "credential PASSWORD", "credential USERNAME"):
        assert f"  {secret}: not set" in elsewhere.stdout
    assert "credit_score: published, fetches may fail until these are set: token, more, PASSWORD, USERNAME" in elsewhere.stderr
    assert "variables:\n- token\n- more\ncredentials:\n- PASSWORD\n- USERNAME\n" in text
    one = (await cli("sources", "export", "soap")).stdout
    assert one == (await cli("sources", "export", "soap", "--project", PROJECT)).stdout
    assert one in text


async def test_the_list_is_a_table_with_archived_ones_on_demand(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec("a", status="PUBLISHED"), cli.spec("b")))
    await cli("sources", "delete", "a", "--yes")
    lines = (await cli("sources", "list")).stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "ID", "LAST", "CHANGE"]
    assert [line.split()[:2] for line in lines[1:]] == [["b", "DRAFT"]]
    assert {name: one["status"] for name, one in (await cli.listed("--include-archived")).items()} == {
        "a": "ARCHIVED",
        "b": "DRAFT",
    }
    assert set(await cli.listed("--status", "ARCHIVED")) == {"a"}


async def test_delete_takes_a_draft_away_and_archives_what_is_published(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec("a"), cli.spec("b")))
    assert (await cli("sources", "publish", "b")).stdout == "b: published\n"
    assert (await cli("sources", "delete", "a", "--yes")).stdout == "a: deleted\n"
    told = json.loads((await cli("sources", "delete", "b", "--json", "--yes")).stdout)
    assert (told["name"], told["action"]) == ("b", "archived")
    assert set(await cli.listed("--include-archived")) == {"b"}
    assert "DATA_SOURCE_NOT_FOUND" in (await cli("fetch", "b", "tax_id=1", code=1)).stderr
    for word in (told["data_source_id"], "b"):
        assert "status: ARCHIVED" in (await cli("sources", "show", word)).stdout


@pytest.mark.parametrize("status", ["DRAFT", "PUBLISHED"])
async def test_nothing_goes_where_nobody_can_be_asked(cli: CommandLine, status: str) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec("a", status=status)))
    done = await cli("sources", "delete", "a", code=2, stdin="y\n")
    assert "pass --yes" in done.stderr
    assert done.stdout == ""
    assert {name: one["status"] for name, one in (await cli.listed()).items()} == {"a": status}


@pytest.mark.parametrize(("word", "code", "left"), [("n", 1, {"a"}), ("y", 0, set())])
async def test_a_person_who_watches_is_asked_before_a_source_goes(cli: CommandLine, word: str, code: int, left: set[str]) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec("a")))
    keyboard, terminal = pty.openpty()
    line = [sys.executable, "-m", "broker_edge", "sources", "delete", "a"]
    environment = {**os.environ, **cli.environment}  # noqa: TID251
    process = await asyncio.create_subprocess_exec(*line, stdin=terminal, stdout=asyncio.subprocess.PIPE, env=environment)
    os.write(keyboard, f"{word}\n".encode())
    out, _ = await process.communicate()
    os.close(keyboard)
    os.close(terminal)
    assert "a will be deleted. Go on?" in out.decode()
    assert process.returncode == code
    assert set(await cli.listed()) == left


async def test_a_test_calls_the_upstream_and_keeps_nothing(cli: CommandLine) -> None:
    source = {"headers": {"X-Token": "{{ env.token }}"}}
    await cli("sources", "apply", "-f", cli.write(cli.spec(source=source, variables={"token": CANARY})))
    told = await cli("sources", "test", "credit_score", f"tax_id={TAX_ID}")
    assert told.stdout.startswith("200 in ")
    assert TAX_ID in told.stdout
    report = await cli("sources", "test", "credit_score", f"tax_id={TAX_ID}", "--json")
    assert json.loads(report.stdout)["status_code"] == 200
    assert CANARY not in told.output + report.output
    assert len(cli.bureau.calls) == 2
    failed = await cli("sources", "test", "credit_score", "tax_id=broken", code=1)
    assert failed.stdout.startswith("503 in ")
    missing = await cli("sources", "test", "credit_score", code=1)
    assert missing.stderr.startswith("MISSING_VARIABLE: ")


async def test_fetch_prints_the_value_and_beside_it_where_it_came_from(cli: CommandLine) -> None:
    await cli(
        "sources", "apply", "-f", cli.write(cli.spec(), cli.spec("notice", "/notice", source={"response_type": "PLAIN_TEXT"}))
    )
    miss = await cli("fetch", "credit_score", f"tax_id={TAX_ID}")
    assert json.loads(miss.stdout)["tax_id"] == TAX_ID
    assert "185265683303854323630891050626" in miss.stdout
    told = dict(line.split(maxsplit=1) for line in miss.stderr.splitlines())
    assert (told["origin"], told["age"]) == ("REQUEST", "-")
    assert told["Cache-Status"] == "broker-edge; fwd=uri-miss; fwd-status=200; stored"
    hit = await cli("fetch", "credit_score", f"tax_id={TAX_ID}")
    kept = dict(line.split(maxsplit=1) for line in hit.stderr.splitlines())
    assert hit.stdout == miss.stdout
    assert (kept["origin"], kept["key"], kept["object"]) == ("CACHE", told["key"], told["object"])
    assert kept["age"].endswith(" s")
    assert len(cli.bureau.calls) == 1
    assert (await cli("fetch", "notice")).stdout == "two\nlines\n"


async def test_fetch_prints_the_whole_reply_as_json(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec()))
    reply = json.loads((await cli("fetch", "credit_score", "tax_id:=7", "--json")).stdout)
    assert (reply["origin"], reply["value"]["tax_id"], reply["error"]) == ("REQUEST", "7", None)


async def test_fetch_takes_mode_age_and_run(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec()))
    assert "NOT_CACHED" in (await cli("fetch", "credit_score", "tax_id=1", "--mode", "cache_only", code=1)).stderr
    run = str(uuid.uuid4())
    await cli("fetch", "credit_score", "tax_id=1", "--run-id", run)
    await cli("fetch", "credit_score", "tax_id=1", "--max-age", "0")
    await cli("fetch", "credit_score", "tax_id=1", "--mode", "refresh")
    assert len(cli.bureau.calls) == 3
    with sqlite3.connect(cli.directory / "data" / "broker_edge.sqlite3") as database:
        runs = [row[0] for row in database.execute("SELECT run_id FROM run_data_request")]
    database.close()
    # All rows are in the database when a command ends: what it left in the spool nobody would ship.
    assert len(runs) == 4
    assert sum(uuid.UUID(str(one)) == uuid.UUID(run) for one in runs) == 1


async def test_a_failed_fetch_is_one_line_with_its_code(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec()))
    for words, expected in (((), "MISSING_VARIABLE: "), (("tax_id=broken",), "UPSTREAM_STATUS: ")):
        done = await cli("fetch", "credit_score", *words, code=1)
        assert done.stdout == ""
        assert done.stderr.startswith(expected)
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["sources", "apply"],
        ["sources", "apply", "-f", "x", "--project", "seven"],
        ["sources", "conjure"],
        ["sources", "list", "--status", "ODD"],
        ["sources", "show"],
        ["sources", "list", "--url", "127.0.0.1:6002"],
        ["fetch"],
        ["fetch", "a", "b"],
        ["fetch", "a", "=b"],
        ["fetch", "a", "b:=nonsense"],
        ["fetch", "a", "b:=NaN"],
        ["fetch", "a", "b=1", "b=2"],
        ["fetch", "a", "--mode", "odd"],
        ["fetch", "a", "--max-age", "-1"],
        ["fetch", "a", "--run-id", "7"],
        ["fetch", "a", "--url", "ftp://127.0.0.1/"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_code_2(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, words, env={f"{PREFIX}DATA_DIR": str(tmp_path), "COLUMNS": "200"})
    assert done.exit_code == 2
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["apply", "list", "show", "test", "publish", "delete", "export"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, ["sources", command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0
    assert f"sources {command}" in done.output


@pytest.mark.parametrize(
    "words",
    [["show", "nobody"], ["test", "nobody"], ["publish", "nobody"], ["delete", "nobody", "--yes"], ["export", "nobody"]],
    ids=" ".join,
)
async def test_a_name_that_nobody_has_is_refused(cli: CommandLine, words: list[str]) -> None:
    done = await cli("sources", *words, code=1)
    assert done.stderr.splitlines()[-1].startswith("DATA_SOURCE_NOT_FOUND: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["fetch", "nobody"],
        *(["sources", word, "nobody"] for word in ("show", "test", "publish")),
        ["sources", "delete", "a", "--yes"],
    ],
    ids=" ".join,
)
async def test_programs_get_the_problem_of_a_failure_as_json(cli: CommandLine, words: list[str]) -> None:
    done = await cli(*words, "--json", code=1)
    problem = json.loads(done.stdout)
    assert (problem["error"]["code"], problem["status"]) == ("DATA_SOURCE_NOT_FOUND", 404)
    assert problem["detail"] in done.stderr


async def test_an_address_that_may_not_be_called_names_the_setting(cli: CommandLine) -> None:
    await cli("sources", "apply", "-f", cli.write(cli.spec()))
    none = {f"{PREFIX}ALLOWED_PRIVATE_HOSTS": ""}
    for words in (("fetch",), ("sources", "test")):
        done = await cli(*words, "credit_score", "tax_id=1", code=1, **none)
        assert f"{PREFIX}ALLOWED_PRIVATE_HOSTS" in done.stderr


@pytest.mark.parametrize("words", [["sources", "list"], ["fetch", "a"]], ids=" ".join)
async def test_an_unmigrated_database_is_refused_with_the_remedy(tmp_path: Path, scores: Bureau, words: list[str]) -> None:
    done = await CommandLine(tmp_path, scores)(*words, code=1)
    assert "run `broker-edge migrate`" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_key_that_is_made_is_said_once(cli: CommandLine) -> None:
    first, second = await cli("sources", "list"), await cli("sources", "list")
    assert first.stderr.startswith("an encryption key was made in DATA_DIR")
    assert first.stderr.count("\n") == 1
    assert second.stderr == ""


async def test_keys_that_can_not_be_used_are_one_line(cli: CommandLine) -> None:
    (cli.directory / "data" / "encryption_keys").write_text(CANARY)
    done = await cli("sources", "list", code=2)
    assert done.stderr.startswith(f"{PREFIX}DATA_DIR: ")
    assert done.stderr.count("\n") == 1
    assert CANARY not in done.output


@pytest.mark.parametrize("words", [["sources", "list"], ["fetch", "a"]], ids=" ".join)
def test_an_edge_that_is_not_there_is_one_line(words: list[str]) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    done = CliRunner().invoke(app, [*words, "--url", url])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("CONNECT_ERROR: ")
    assert done.stderr.count("\n") == 1


NO_EDGE = [
    *(http_reply(b"<html>"), http_reply(b"<html>", 404), json_reply({"error": "other"}, 500)),
    *(json_reply({"a": 1}), json_reply([1]), json_reply([{"name": 1}])),
]


@pytest.mark.parametrize("answer", NO_EDGE)
@pytest.mark.parametrize(
    "words", [["sources", "list"], ["sources", "export"], ["sources", "show", "a"], ["fetch", "a"]], ids=" ".join
)
async def test_what_is_no_edge_is_one_line(tmp_path: Path, answer: bytes, words: list[str]) -> None:
    async with Bureau(lambda _: answer).running() as other:
        done = await CommandLine(tmp_path, other)(*words, "--url", other.url, code=1)
    assert "no edge" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_running_edge_is_asked_at_its_url_and_hears_of_changes_made_beside_it(
    served: tuple[CommandLine, EdgeProcess],
) -> None:
    cli, edge = served
    await edge.ready()
    await cli("sources", "apply", "-f", cli.write(cli.spec()), "--url", edge.url)
    assert set(await cli.listed()) == {"credit_score"}
    done = await cli("fetch", "credit_score", f"tax_id={TAX_ID}", "--url", edge.url)
    assert json.loads(done.stdout)["tax_id"] == TAX_ID
    await cli("sources", "apply", "-f", cli.write(cli.spec("beside")))
    words = ["fetch", "beside", "tax_id=1", "--url", edge.url]
    async with asyncio.timeout(30):  # by the bus, else within the five seconds that a snapshot may be old
        while (await asyncio.to_thread(CliRunner().invoke, app, words)).exit_code:
            pass
