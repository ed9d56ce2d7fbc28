"""A Beam pipeline with one data input of the predecessor's package, which asks the edge by name; prints JSON, a line an element.

Runs in `.venv-beam`: `python tests_beam/pipeline.py EDGE_URL DATA_SOURCE RUN_ID ELEMENTS DISTINCT`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from vulkan.runners.beam.context import make_beam_context
from vulkan.runners.beam.nodes import BeamDataInput
from vulkan.schemas import DataSourceSpec


def spec(edge_url: str, data_source: str, run_id: str) -> DataSourceSpec:
    """A spec whose request is one to the edge: so a Beam worker takes its data from the same cache as everyone else.

    That package fills templates of the body's own members only, and reads what they become as Python: hence one template that
    becomes a whole dictionary, in which a tax id of digits stays text.
    """
    return DataSourceSpec.model_validate(
        {
            "name": data_source,
            "source": {
                "url": f"{edge_url}/internal/data-broker",
                "method": "POST",
                "body": {
                    "data_source_name": data_source,
                    "configured_params": "{{ {'tax_id': tax_id} }}",
                    "run_id": run_id,
                },
                "timeout": 30,
                "retry": {"max_retries": 1},
                "response_type": "JSON",
            },
        }
    )


def run(edge_url: str, data_source: str, run_id: str, elements: int, distinct: int) -> None:
    node = BeamDataInput(name="score", spec=spec(edge_url, data_source, run_id)).with_context(make_beam_context(env={}))
    inputs = [(str(number), {"tax_id": f"0{number % distinct:010d}"}) for number in range(elements)]
    options = PipelineOptions(["--runner=DirectRunner", "--direct_num_workers=1"])
    with beam.Pipeline(options=options) as pipeline:
        answers = pipeline | "elements" >> beam.Create(inputs) | "score" >> node.op()
        _ = answers.data | "print" >> beam.Map(_show)


def _show(element: tuple[str, dict[str, Any]]) -> None:
    key, answer = element
    print(json.dumps({"element": key, "origin": answer["origin"], "value": answer["value"]}), flush=True)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
