"""The load run without the load: its arguments, its bodies, its arithmetic, its verdict, and that it stops what it started."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import load, payloads, processes
from loadtests.report import Line, Report, missed, percentile, read_lines, table

GOOD = Report("hit", 1000.0, 30.0, (Line("hit", 30_000, 0, 998.0, 2.0, 9.0, 20.0),), {"edge": 6.0, "locust": 9.0})


def with_line(**changes: Any) -> Report:
    return replace(GOOD, lines=(replace(GOOD.lines[0], **changes),))


@pytest.mark.parametrize(("profile", "rate", "users"), [("hit", 1000, 100), ("miss", 200, 20), ("mixed", 300, 30)])
def test_each_profile_has_a_rate_and_users_of_its_own(profile: str, rate: float, users: int) -> None:
    options = load.parse(["--profile", profile])
    assert (options.rate, options.users, options.seconds) == (rate, users, 30)


@pytest.mark.parametrize(("rate", "users"), [("1", 10), ("20000", 400)])
def test_users_stay_within_reason(rate: str, users: int) -> None:
    assert load.parse(["--rate", rate]).users == users


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--rate", "fast"],
        ["--seconds", "0.5"],
        ["--users", "-1"],
        ["--workers", "2"],
        ["--keys", "0"],
        ["--edge-url", "http://127.0.0.1:1"],
        ["--edge-url", "http://127.0.0.1:1", "--bureau-url", "http://127.0.0.1:2", "--servers"],
        ["--servers", "--redis-url", "redis://127.0.0.1"],
        ["--env", "NAME"],
        ["--profile", "storm"],
    ],
)
def test_arguments_that_make_no_sense_are_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load.parse(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_edge_is_told_what_the_arguments_say_and_env_comes_last() -> None:
    options = load.parse(["--redis-url", "redis://r", "--workers", "2", "--env", "DATA_BROKER_LOG_LEVEL=INFO", "--env", "A=b=c"])
    assert load.edge_settings(options, 7001, "data") == {
        "DATA_BROKER_DATA_DIR": "data",
        "DATA_BROKER_ALLOWED_PRIVATE_HOSTS": "127.0.0.1:7001",
        "DATA_BROKER_LOG_LEVEL": "INFO",
        "DATA_BROKER_WORKERS": "2",
        "DATA_BROKER_REDIS_URL": "redis://r",
        "A": "b=c",
    }


def test_every_setting_given_to_the_edge_exists() -> None:
    from broker_edge.settings import load as read

    options = load.parse(["--redis-url", "redis://r", "--database-url", "postgresql://d", "--workers", "2"])
    assert read(load.edge_settings(options, 7001, "data")).workers == 2


def test_settings_around_the_run_do_not_reach_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_BROKER_REDIS_URL", "redis://elsewhere")
    seen = processes.child_environment({"DATA_BROKER_PORT": "1"})
    assert {name for name in seen if name.startswith("DATA_BROKER_")} == {"DATA_BROKER_PORT"}
    assert "PATH" in seen


def test_locust_offers_the_whole_rate_and_counts_once_all_users_are_there(tmp_path: Path) -> None:
    options = load.parse(["--profile", "mixed", "--rate", "250", "--seconds", "7"])
    words = load.locust_command(options, load.Place("http://e", "http://b", {}), tmp_path / "counts.json")
    flags = dict(pairwise(words))
    assert "MixedUser" in words
    assert "--reset-stats" in words
    assert (flags["--rate"], flags["--users"], flags["--run-time"]) == ("250", "25", "8s")
    assert flags["--json-file"] == str(tmp_path / "counts")


def test_bodies_differ_in_run_id_alone_for_one_key() -> None:
    template = payloads.body_template("http://127.0.0.1:7001/100%")
    first, second = (json.loads(payloads.render(template, "9")) for _ in range(2))
    assert UUID(first.pop("run_id")) != UUID(second.pop("run_id"))
    assert first == second
    assert first["configured_params"] == {"tax_id": "9"}
    assert "latency_ms=50" in first["data_source_spec"]["source"]["url"]


def test_warm_bodies_ask_for_the_keys_that_hits_ask_for() -> None:
    asked = {json.loads(body)["configured_params"]["tax_id"] for body in payloads.warm_bodies("http://b", 3)}
    assert asked == {payloads.warm_key(index) for index in range(3)}


def test_new_keys_never_repeat_and_are_never_warm() -> None:
    keys = {payloads.new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert not keys & {payloads.warm_key(index) for index in range(1000)}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ({"origin": "CACHE", "value": {"tax_id": "1"}}, True),
        ({"origin": "REQUEST", "value": {"tax_id": "1"}}, False),
        ({"origin": "CACHE", "value": {"tax_id": "2"}}, False),
    ],
)
def test_a_reply_of_another_origin_or_key_is_a_fault(answer: dict[str, Any], right: bool) -> None:
    assert (payloads.fault(answer, "1", "CACHE") is None) is right


@given(times=st.lists(st.integers(0, 300), min_size=1), share=st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_smallest_time_that_covers_its_share(times: list[int], share: float) -> None:
    found = percentile({float(time): times.count(time) for time in times}, share)
    assert found is not None
    assert sum(time <= found for time in times) >= share * len(times)
    assert sum(time < found for time in times) < share * len(times)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile({}, 0.95) is None


def test_lines_are_read_from_locusts_counts() -> None:
    entry = {
        "name": "hit",
        "num_requests": 100,
        "num_failures": 1,
        "start_time": 1000.0,
        "last_request_timestamp": 1010.0,
        "response_times": {"2": 90, "30.0": 9, "120": 1},
    }
    unused = {**entry, "name": "miss", "num_requests": 0, "last_request_timestamp": None}
    assert read_lines([unused, entry]) == (Line("hit", 100, 1, 10.0, 2.0, 30.0, 30.0),)


def test_a_good_run_misses_no_bar() -> None:
    assert missed(GOOD) == []
    assert "MISSED" not in table(GOOD)


@pytest.mark.parametrize(
    "report",
    [with_line(failures=1), with_line(rate=900.0), with_line(p95_ms=100.0), with_line(p95_ms=None), replace(GOOD, lines=())],
    ids=["failure", "rate", "slow", "untimed", "nothing"],
)
def test_each_bar_can_be_missed(report: Report) -> None:
    assert len(missed(report)) == 1
    assert table(report).count("MISSED") == 1
    assert len(report.as_json()["missed"]) == 1


def test_misses_are_judged_by_their_own_time_and_not_by_the_rate() -> None:
    line = Line("miss", 100, 0, 10.0, 60.0, 450.0, 600.0)
    assert missed(replace(GOOD, profile="miss", lines=(line,))) == []
    assert len(missed(replace(GOOD, profile="miss", lines=(replace(line, p95_ms=500.0),)))) == 1


def test_the_table_shows_numbers_and_cpu_in_aligned_columns() -> None:
    lines = table(GOOD).splitlines()
    assert len(lines[1]) == len(lines[2])
    assert lines[2].split() == ["hit", "998", "30000", "0", "2", "9", "20"]
    assert "edge 6.0 s (200 us a request)" in lines[3]


def test_a_server_is_there_inside_the_block_and_gone_after_it() -> None:
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}/calls"
    with processes.served(load.bureau_command(port), url) as child:
        assert processes.answers(url)
        assert processes.cpu_seconds(child.pid) > 0
    assert not processes.answers(url)
    assert not psutil.pid_exists(child.pid)


def test_a_server_that_ends_at_once_is_an_error_with_its_exit_code() -> None:
    with pytest.raises(processes.LoadError, match="exit code 3"), processes.served(("-c", "exit(3)"), "http://127.0.0.1:1/"):
        pass


def test_an_edge_that_does_not_answer_is_a_failed_run(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{processes.free_port()}"
    assert load.main(["--edge-url", url, "--bureau-url", url, "--keys", "1"]) == 1
    assert capsys.readouterr().err == "load: the edge did not answer while its cache was being warmed\n"
