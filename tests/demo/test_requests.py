"""The commands that a reader pastes: valid in a POSIX shell, complete, and the second a hit on the first."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any
from uuid import UUID

import pytest

from broker_edge.demo.requests import Command, commands, sample_specs

EDGE, BUREAU = "http://127.0.0.1:6002", "http://127.0.0.1:7001"
COMMANDS = commands(EDGE, BUREAU)
FETCHES = [command for command in COMMANDS if "fetch-data" in command.curl]


def body_of(command: Command) -> dict[str, Any]:
    words = shlex.split(command.curl)
    parsed: dict[str, Any] = json.loads(words[words.index("-d") + 1])
    return parsed


def test_every_format_is_asked_for_once_and_the_score_twice() -> None:
    asked = [body_of(command)["data_source_spec"]["source"]["response_type"] for command in FETCHES]
    assert asked == ["JSON", "JSON", "CSV", "XML", "PLAIN_TEXT"]


@pytest.mark.parametrize("command", FETCHES, ids=lambda command: command.title[:12])
def test_a_fetch_is_a_complete_request_to_the_edge(command: Command) -> None:
    words = shlex.split(command.curl)
    assert words[:3] == ["curl", "-sS", f"{EDGE}/v1/fetch-data"]
    assert words[words.index("-H") + 1] == "Content-Type: application/json"
    body = body_of(command)
    assert UUID(body["run_id"])
    assert UUID(body["data_source_spec"]["data_source_id"])
    assert body["data_source_spec"]["caching"] == {"enabled": True, "ttl": 3600}
    assert body["data_source_spec"]["source"]["url"].startswith(BUREAU + "/")


def test_the_second_command_asks_what_the_first_asked_in_another_run() -> None:
    first, second = body_of(FETCHES[0]), body_of(FETCHES[1])
    assert first.pop("run_id") != second.pop("run_id")
    assert first == second


def test_a_shell_hands_curl_the_json_unchanged() -> None:
    for command in (one for one in COMMANDS if " -d " in one.curl):
        script = command.curl.replace("curl", "printf '%s\\0'", 1)
        seen = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=10).stdout
        assert seen.decode().split("\0")[:-1] == shlex.split(command.curl)[1:]


def test_a_source_is_asked_for_by_its_name_too() -> None:
    by_name = next(command for command in COMMANDS if "/internal/data-broker" in command.curl)
    body = body_of(by_name)
    assert UUID(body.pop("run_id"))
    assert body == {"data_source_name": "credit_score", "configured_params": {"tax_id": "01234567890"}}


def test_the_command_line_asks_for_it_as_well() -> None:
    shown = [command.curl for command in COMMANDS]
    assert f"broker-edge fetch credit_score tax_id=01234567890 --url {EDGE}" in shown
    assert f"broker-edge sources list --url {EDGE}" in shown


def test_the_places_to_look_at_are_shown() -> None:
    shown = " ".join(command.curl for command in COMMANDS if command not in FETCHES)
    assert all(f"{EDGE}/{place}" in shown for place in ("healthz", "metrics", "docs"))


def test_each_sample_source_has_an_id_of_its_own() -> None:
    assert len({spec["data_source_id"] for spec in sample_specs(BUREAU).values()}) == 4
