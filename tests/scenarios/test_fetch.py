"""The walking path, over the embedded default and over Redis with Postgres."""

from __future__ import annotations

from tests.edges import Bureau, InProcess, request, spec, table


async def test_a_miss_is_fetched_and_the_second_request_is_a_hit(edge: InProcess, bureau: Bureau) -> None:
    source = spec(f"{bureau.url}/score/{{{{ id }}}}")
    first = await edge.post(request(source, {"id": "7"}))
    second = await edge.post(request(source, {"id": "7"}))
    assert (first.status, second.status) == (200, 200)
    one, two = first.json(), second.json()
    assert one["value"] == two["value"] == {"score": 700}
    assert (one["origin"], two["origin"]) == ("REQUEST", "CACHE")
    assert one["data_object_id"] == two["data_object_id"]
    assert one["key"] == two["key"]
    assert one["duration"] == round(one["end_time"] - one["start_time"], 6)
    assert two["start_time"] is two["end_time"] is two["duration"] is None
    assert first.headers["cache-status"] == "broker-edge; fwd=uri-miss; fwd-status=200; stored"
    assert second.headers["cache-status"].startswith("broker-edge; hit; ttl=35")
    assert second.headers["age"] == "0"
    assert [call.line for call in bureau.calls] == ["GET /score/7 HTTP/1.1"]


async def test_every_answer_has_a_row_failures_included(edge: InProcess, bureau: Bureau) -> None:
    source = spec(f"{bureau.url}/score/{{{{ id }}}}")
    bodies = [request(source, {"id": "7"}), request(source, {"id": "7"}), request(source, {})]
    for body in bodies:
        await edge.post(body)
    rows = {str(row.run_id).replace("-", ""): row for row in await edge.rows()}
    fetched, hit, failed = (rows[body["run_id"].replace("-", "")] for body in bodies)
    assert (fetched.data_origin, hit.data_origin, failed.data_origin) == ("REQUEST", "CACHE", None)
    assert fetched.data_object_id == hit.data_object_id is not None
    assert fetched.end_time >= fetched.start_time
    assert "MISSING_VARIABLE" in str(failed.error)
    assert fetched.error is None


async def test_the_object_is_in_the_database_before_the_reply_names_it(edge: InProcess, bureau: Bureau) -> None:
    answer = (await edge.post(request(spec(bureau.url)))).json()
    objects = await table(edge.edge.engine, "data_object")
    assert [str(row.data_object_id).replace("-", "") for row in objects] == [answer["data_object_id"].replace("-", "")]
    assert bytes(objects[0].value) == b'{"score": 700}'
