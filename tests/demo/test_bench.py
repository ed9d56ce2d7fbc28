"""The benchmark without the benchmarking: what is asked, the arithmetic, verdicts and report, and the open-loop generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from broker_edge.core.source import parse_source
from broker_edge.settings import load as read_settings
from loadtests import bars, bench, bodies, guard, offered, rounds, tools, wrk
from loadtests.bodies import Drive
from loadtests.competitors import answers, edge, seeding
from loadtests.figures import Line, Sample, Section, table
from loadtests.machine import Cores
from loadtests.processes import LoadError
from loadtests.rig import Rig
from loadtests.sections import EDGE, FLOOR, quick, sections
from tests.edges import in_process, settings
from tests.servers import Valkey

GOOD = Sample(10_000, 2.0, 0, 1.0, 2.0, 3.0, 50.0, 0.98, 60.0)


def rig(tmp_path: Path) -> Rig:
    return Rig(Cores(frozenset({1}), frozenset({0})), tmp_path, 6379, "redis", None, 7001, 7002, bench.ROOT)


def section(name: str, **samples: Sample) -> Section:
    return Section(name, name, tuple(Line(line, (sample,)) for line, sample in samples.items()))


@pytest.mark.parametrize("drive", [Drive(), Drive(specs=True), Drive(kind="miss", tls=True), Drive(value="1m")])
def test_every_drive_asks_in_the_contracts_form(drive: Drive) -> None:
    asked = json.loads(bodies.filled(bodies.body(drive, "http://127.0.0.1:7001"), 17, 4))
    source = parse_source(json.dumps(asked["data_source_spec"]).encode())
    assert UUID(asked["run_id"])
    assert source.request.names == {"tax_id"}
    assert asked["configured_params"] == {"tax_id": "000000000017"}


def test_requests_of_one_key_differ_in_their_run_alone_and_keep_their_length() -> None:
    template = bodies.body(Drive(), "http://u")
    first, second = bodies.filled(template, 3, 1), bodies.filled(template, 3, 999)
    assert first != second
    assert len(first) == len(second)
    assert {**json.loads(first), "run_id": 0} == {**json.loads(second), "run_id": 0}


def test_only_specs_of_their_own_differ_between_keys() -> None:
    def spec_of(drive: Drive, key: int) -> Any:
        return json.loads(bodies.filled(bodies.body(drive, "http://u"), key))["data_source_spec"]

    assert spec_of(Drive(), 1) == spec_of(Drive(), 2)
    assert spec_of(Drive(specs=True), 1) != spec_of(Drive(specs=True), 2)


def test_ranges_of_new_keys_never_meet_each_other_or_the_warm_set(tmp_path: Path) -> None:
    place = rig(tmp_path)
    first, second = place.new_keys(), place.new_keys()
    assert second - first >= 10**8
    assert first > max(entry.drive.keys for plan in sections().values() for entry in plan.entries)
    assert len(f"{first + 800 * 10**8:012d}") == bodies.DIGITS


@pytest.mark.parametrize(("kind", "origin"), [("hit", "CACHE"), ("miss", "REQUEST"), ("mixed", "CACHE")])
def test_an_answer_is_judged_by_origin_key_and_value(kind: bodies.Kind, origin: str) -> None:
    drive = Drive(kind=kind)
    right = {**json.loads(answers.envelope(drive, 5)), "origin": origin}
    assert answers.fault(drive, 5, right) is None
    assert answers.fault(drive, 6, right)
    assert answers.fault(drive, 5, {**right, "origin": "OTHER"})
    assert answers.fault(drive, 5, {**right, "key": "short"})


def test_the_edge_of_every_section_is_told_settings_that_exist(tmp_path: Path) -> None:
    place, competitors = rig(tmp_path), {entry.competitor for plan in sections().values() for entry in plan.entries}
    (tmp_path / "ca.pem").write_text("")
    edges = [who for who in competitors if isinstance(who, edge.Edge)]
    assert len(edges) > 5
    for who in edges:
        told = read_settings(who.environment(place, 1, "postgresql://u@127.0.0.1/d", str(tmp_path)))
        assert (told.workers, told.log_level) == (who.workers, who.log_level)


async def test_entries_put_into_redis_by_the_run_are_hits_for_the_edge(tmp_path: Path, redis_server: Valkey) -> None:
    drive = Drive(keys=3)
    template = bodies.body(drive, "http://127.0.0.1:1")
    client = redis.Redis.from_url(redis_server.url)
    await asyncio.to_thread(seeding.seed, client, template, drive)
    async with in_process(settings(tmp_path, redis_url=redis_server.url)) as running:
        for key in range(3):
            answer = (await running.post(bodies.filled(template, key))).json()
            assert answers.fault(drive, key, answer) is None
    client.close()


def test_the_near_tiers_setting_is_given_where_the_checkout_has_it(tmp_path: Path) -> None:
    (tmp_path / "broker_edge").mkdir()
    for text, there in (("port: int\n", False), ("near_tier_bytes: int\n", True)):
        (tmp_path / "broker_edge" / "settings.py").write_text(text)
        place = replace(rig(tmp_path), checkout=tmp_path)
        assert ("DATA_BROKER_NEAR_TIER_BYTES" in EDGE.environment(place, 1, "d", "d")) is there


def test_counts_are_read_from_the_generators_one_line() -> None:
    assert wrk.read('Running 2s test\n@json {"requests": 3}\n')["requests"] == 3
    with pytest.raises(LoadError, match="no counts"):
        wrk.read("Running 2s test\n")


@pytest.mark.parametrize(
    ("kind", "requests", "hits", "strays"),
    [("hit", 1000, 1064, 0), ("hit", 1000, 500, 431), ("miss", 1000, 0, 0), ("miss", 1000, 100, 31), ("mixed", 1000, 600, 0)],
)
def test_answers_from_elsewhere_than_meant_count_as_errors(kind: bodies.Kind, requests: int, hits: float, strays: int) -> None:
    assert wrk.astray(Drive(kind=kind, connections=64), requests, hits) == strays


def test_another_line_begins_each_round_and_all_are_driven() -> None:
    entries = [rounds.Entry(name, EDGE, Drive()) for name in "abc"]
    orders = ["".join(entry.name for entry in rounds.turned(entries, number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]
    assert rounds.turned([], 1) == []


def test_a_run_that_must_see_every_key_is_long_enough_at_the_rate_seen() -> None:
    entry = rounds.Entry("many", EDGE, Drive(keys=100_000), cover=True)
    assert rounds.covering(entry, 3.0, 10_000) >= 10
    assert rounds.covering(entry, 3.0, 1e6) == 3.0
    assert rounds.covering(replace(entry, cover=False), 3.0, 10_000) == 3.0


def test_a_line_tells_medians_and_extremes() -> None:
    samples = tuple(replace(GOOD, requests=number, errors=1, rss_mb=number) for number in (4000, 1000, 2000))
    median = Line("x", samples).as_json()["median"]
    assert (median["rate"], median["rate_min"], median["rate_max"]) == (1000, 500, 2000)
    assert (median["errors"], median["rss_mb"]) == (3, 4000)


def test_a_table_is_aligned_and_names_who_was_left_out() -> None:
    shown = table(Section("s", "Title", (Line("a", (GOOD,)), Line("long name", (GOOD,)), Line("gone", left_out="no 3.12"))))
    title, *rows, gone = shown.splitlines()
    assert title == "Title"
    assert len({len(row) for row in rows}) == 1
    assert gone == "gone: left out, no 3.12"
    late = table(section("s", a=replace(GOOD, late_ms=0.5)))
    assert "late by 0.50 ms" in late


@pytest.mark.parametrize(
    ("measured", "at_most", "words"),
    [
        (1.2, False, "met, and the aim"),
        (0.8, False, "met"),
        (0.6, False, "not reached: 0.80 of the bar"),
        (0.5, True, "met, and the aim"),
        (0.9, True, "not reached: 0.83 of the bar"),
        (None, False, "not measured"),
    ],
)
def test_a_bar_is_met_or_says_how_far_off_it_is(measured: float | None, at_most: bool, words: str) -> None:
    aim = 0.6 if at_most else 1.0
    assert bars.Bar("b", 0.75, aim, lambda _: measured, at_most=at_most).judge({}).words == words


def test_every_bar_finds_its_lines_in_the_sections() -> None:
    made = {
        name: Section(name, name, tuple(Line(entry.name, (GOOD,)) for entry in plan.entries)) for name, plan in sections().items()
    }
    assert [verdict.name for verdict in bars.judge(made) if verdict.measured is None] == []
    assert {verdict.words for verdict in bars.judge({})} == {"not measured"}


def test_two_workers_have_twice_the_capacity_where_a_request_costs_the_same() -> None:
    made = section("workers", **{bars.ONE_WORKER: GOOD, bars.TWO_WORKERS: replace(GOOD, cpu_us=62.5)})
    found = {verdict.name: verdict.measured for verdict in bars.judge({"workers": made})}
    assert found["capacity of two workers / one on hits"] == pytest.approx(1.6)


def test_a_rate_that_the_load_held_back_says_so() -> None:
    idle = section("miss", broker_edge=replace(GOOD, requests=2000, busy=0.5, cpu_us=200.0))
    busy = section("miss", broker_edge=replace(GOOD, requests=2000))
    text, plain = (bars.verdict_table(bars.judge({"miss": made})) for made in (idle, busy))
    assert "server busy 50%, the load's core was the limit; by its CPU a core does 5,000/s" in text
    assert "the limit" not in plain
    assert "not reached: 0.25 of the bar" in plain


@pytest.mark.parametrize(("worse", "kept"), [(1.0, True), (1.14, True), (1.16, False)])
def test_speed_is_lost_beyond_the_margin(worse: float, kept: bool) -> None:
    baseline = guard.Baseline(2.0, 0.15)
    found, sentence = guard.verdict([9.0, 2.0 * worse, 0.1], baseline)
    assert found is kept
    assert "+ 15% = 2.30" in sentence


def test_rounds_are_compared_each_with_its_own_floor_and_can_be_accepted(tmp_path: Path) -> None:
    pairs = [(30.0, 15.0), (80.0, 20.0), (50.0, 20.0)]
    ours = Line(EDGE.label, tuple(replace(GOOD, cpu_us=mine) for mine, _ in pairs))
    floor = Line(FLOOR.label, tuple(replace(GOOD, cpu_us=least) for _, least in pairs))
    found = guard.ratios(Section("check", "", (floor, ours)))
    assert found == [2.0, 4.0, 2.5]
    guard.accepted(found).write(tmp_path / "b.json")
    assert guard.Baseline.read(tmp_path / "b.json") == guard.Baseline(2.5, guard.MARGIN)


def test_a_ratio_has_been_accepted() -> None:
    assert guard.Baseline.read().limit > 1


@pytest.mark.parametrize(
    "words", [["--only", "storm"], ["--rounds", "0"], ["--seconds", "x"], ["--accept"], ["--quick", "--check"]]
)
def test_arguments_that_make_no_sense_are_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.parse(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_arguments_choose_sections_and_their_length() -> None:
    plans = bench.parse(["--only", "miss,hit", "--rounds", "2", "--seconds", "1"]).plans
    assert [(plan.name, plan.rounds, plan.seconds) for plan in plans] == [("miss", 2, 1), ("hit", 2, 1)]
    assert [plan.name for plan in bench.parse([]).plans] == list(sections())


def test_the_quick_run_fits_its_two_minutes() -> None:
    plans = quick().values()
    assert {"hit", "miss"} <= quick().keys()
    assert sum(len(plan.entries) * (plan.rounds * (plan.seconds + 2) + 5) for plan in plans) < 120


def test_a_report_is_tables_figures_and_a_picture(tmp_path: Path) -> None:
    made = [section("hit", broker_edge=GOOD, other=GOOD), section("offered", a=replace(GOOD, late_ms=1.0))]
    made.append(Section("gone", "Gone", (Line("x", left_out="not here"),)))
    bench.write(tmp_path, {"system": "s"}, made)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [found["name"] for found in report["sections"]] == ["hit", "offered", "gone"]
    assert report["sections"][0]["lines"][0]["median"]["rate"] == 5000
    assert len(report["bars"]) == len(bars.BARS)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "x: left out, not here" in (tmp_path / "bench.txt").read_text()


def test_missing_programs_are_named_where_they_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(tools, "REQUIRED", {"wrk": lambda: True, "some-package": lambda: False})
    with pytest.raises(LoadError, match=r"apt-get install some-package$"):
        tools.ensure()


def test_an_optional_program_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(tools, "REQUIRED", {})
    monkeypatch.setattr(tools, "OPTIONAL", {"varnish": lambda: False})
    tools.ensure()


@contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """A port where every request is answered with `pieces`, a write each; one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed when the block ends
                while True:
                    _converse(listener.accept()[0], pieces)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _converse(peer: socket.socket, pieces: tuple[bytes, ...]) -> None:
    with peer:
        while data := peer.recv(65536):
            for _ in range(data.count(b"POST ")):
                for piece in pieces:
                    peer.sendall(piece)


def test_times_count_from_when_a_request_was_due() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-", b"Length: 2\r\n\r\n{", b"}") as port:
        counts = offered.Generator(port, 1e6, 1, [offered.request(b"{}")]).run(0.0001)
    # All are due at once, so each waits for all before it: in a closed loop their times would be alike.
    assert len(counts.took) == 100
    assert counts.took == sorted(counts.took)
    assert counts.errors == 0


def test_what_is_no_200_is_an_error() -> None:
    with answering(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") as port:
        counts = offered.Generator(port, 1e6, 1, [offered.request(b"{}")]).run(0.00001)
    assert (counts.errors, counts.took) == (10, [])


def test_the_generator_prints_what_wrks_script_prints() -> None:
    script = (Path(wrk.__file__).with_name("wrk.lua")).read_text()
    printed = set(re.findall(r'\\"(\w+)\\":', script))
    found = offered.summary(offered.Counts([0.001, 0.002, 0.003], [0.0, 0.0001], 1), 2.0)
    assert printed == found.keys() - {"late_p99"}
    assert (found["requests"], found["errors"], round(found["p50"], 3)) == (3, 1, 2.0)
