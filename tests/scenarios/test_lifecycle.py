"""How the service starts, refuses to start, and ends: by its command, as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker_edge.backends.sql_durable import make_engine
from broker_edge.settings import Settings
from tests.edges import Bureau, EdgeProcess, request, settings, spec, table
from tests.scenarios.herds import PATIENCE, process, servers_of, until
from tests.servers import Postgres, Valkey, free_port


async def _refuses_connections(edge: EdgeProcess) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False


async def _ended_with_a_request_in_flight(edge: EdgeProcess, chosen: Settings, bureau: Bureau, number: int) -> None:
    body = request(spec(bureau.url, timeout=100))
    bureau.gate.clear()
    edge.start()
    await edge.ready()
    async with httpx.AsyncClient(trust_env=False, timeout=100) as client, asyncio.TaskGroup() as group:
        running = group.create_task(client.post(f"{edge.url}/v1/fetch-data", json=body))
        await bureau.arrived.wait()
        edge.signal(number)
        await until(lambda: _refuses_connections(edge))
        assert not running.done()
        bureau.gate.set()
    assert running.result().status_code == 200
    assert edge.process is not None
    assert await asyncio.to_thread(edge.process.wait, PATIENCE) == 0, edge.log
    engine = make_engine(chosen.database)
    rows = await table(engine, "run_data_request")
    await engine.dispose()
    assert [str(row.run_id) for row in rows] == [body["run_id"]]
    assert not list((edge.data_dir / "spool").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_lets_the_running_request_finish_flushes_and_ends_in_0(
    tmp_path: Path, bureau: Bureau, number: int
) -> None:
    async with process(tmp_path) as edge:
        await _ended_with_a_request_in_flight(edge, settings(tmp_path), bureau, number)


async def test_a_signal_lets_two_workers_finish_flush_and_end_in_0(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    shared = servers_of(redis_server, postgres_server)
    async with process(tmp_path, workers=2, **shared) as edge:
        await _ended_with_a_request_in_flight(edge, settings(tmp_path, **shared), bureau, signal.SIGTERM)


async def test_an_idle_edge_ends_at_once_with_a_client_still_connected(tmp_path: Path) -> None:
    async with process(tmp_path) as edge, httpx.AsyncClient(trust_env=False) as client:
        edge.start()
        await edge.ready()
        assert (await client.get(f"{edge.url}/healthz")).status_code == 200
        assert await asyncio.to_thread(edge.stop) == 0


def _edge(directory: Path, **environment: str) -> EdgeProcess:
    return EdgeProcess(directory, {f"DATA_BROKER_{name.upper()}": value for name, value in environment.items()})


def _serve(edge: EdgeProcess, *options: str) -> subprocess.CompletedProcess[str]:
    return edge.command("serve", "--host", "127.0.0.1", "--port", str(edge.port), *options)


def _only_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.splitlines()
    return line


def test_serve_refuses_a_database_that_is_not_migrated_and_says_what_to_do(tmp_path: Path) -> None:
    done = _serve(_edge(tmp_path))
    assert done.returncode == 1
    assert "broker-edge migrate" in _only_line(done)


def test_serve_refuses_a_database_that_is_not_there_without_showing_its_password(tmp_path: Path) -> None:
    done = _serve(_edge(tmp_path, database_url=f"postgresql://broker:s3cret@127.0.0.1:{free_port()}/edge"))
    assert done.returncode == 1
    assert "DATA_BROKER_DATABASE_URL" in _only_line(done)
    assert "s3cret" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"spool_size": "1"}, "DATA_BROKER_SPOOL_SIZE"),
        ({"port": "http"}, "DATA_BROKER_PORT"),
        ({"upstream_ca_file": "nowhere.pem"}, "DATA_BROKER_UPSTREAM_CA_FILE"),
    ],
    ids=["unknown", "bad value", "no such file"],
)
def test_a_setting_that_cannot_be_used_stops_the_start_with_a_line_that_names_it(
    tmp_path: Path, environment: dict[str, str], named: str
) -> None:
    done = _edge(tmp_path, **environment).command("serve")
    assert done.returncode == 2
    assert named in _only_line(done)
    assert not list(tmp_path.iterdir())


def test_two_workers_without_redis_are_refused(tmp_path: Path) -> None:
    done = _serve(_edge(tmp_path), "--workers", "2")
    assert done.returncode == 2
    assert "DATA_BROKER_REDIS_URL" in _only_line(done)


async def test_a_port_that_is_taken_ends_in_1(tmp_path: Path, bureau: Bureau) -> None:
    async with process(tmp_path) as edge:
        edge.port = bureau.port
        done = await asyncio.to_thread(_serve, edge)
    assert done.returncode == 1
    assert "address already in use" in done.stdout + done.stderr


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_edge_that_cannot_be_built_ends_in_1_with_one_line_for_each_process(
    tmp_path: Path, redis_server: Valkey, postgres_server: Postgres, workers: int
) -> None:
    """The parent finds nothing wrong; a worker finds that its exporter of spans can't be made."""
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}
    async with process(tmp_path, **servers_of(redis_server, postgres_server)) as edge:
        edge.environment |= tracing
        done = await asyncio.to_thread(_serve, edge, "--workers", str(workers))
    assert done.returncode == 1
    assert 1 <= len(done.stderr.splitlines()) <= workers, done.stderr
    assert "the edge can't start" in done.stderr
    assert str(tmp_path) not in done.stderr + done.stdout


def test_a_directory_that_cannot_be_written_stops_the_start_with_a_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    done = _serve(_edge(tmp_path))
    assert done.returncode == 1
    assert "DATA_BROKER_DATA_DIR" in _only_line(done)


def test_migrating_twice_is_fine(tmp_path: Path) -> None:
    edge = _edge(tmp_path)
    first, second = edge.command("migrate", "--json"), edge.command("migrate", "--json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout
    with contextlib.closing(sqlite3.connect(tmp_path / "broker_edge.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


async def test_two_that_migrate_at_once_are_both_done(tmp_path: Path, postgres_server: Postgres) -> None:
    database = postgres_server.create(migrated=True)
    edges = [_edge(tmp_path / str(number), database_url=database) for number in range(2)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.to_thread(edge.command, "migrate")) for edge in edges]
    done: list[Any] = [task.result() for task in tasks]
    assert [each.returncode for each in done] == [0, 0], done
