"""The predecessor's own service behind one route, as its server has it: synchronous, a session for each request, Postgres.

Runs in an environment of its own and imports nothing of this project. Arguments: port, SQLAlchemy URL, upstream's URL.
"""

import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from vulkan.schemas import DataSourceSpec
from vulkan_engine import db, schemas
from vulkan_engine.services.data_source import DataSourceService

RUN_ID = "7d1c2b3a-0000-4000-8000-000000000001"
NAME = "bureau"


def prepare(engine: Any, upstream: str) -> None:
    """Tables, one data source and one run."""
    db.Base.metadata.create_all(engine)
    source = {
        "url": upstream,
        "method": "GET",
        "headers": {"Accept": "application/json"},
        "params": {"tax_id": {"param": "tax_id"}},
        "timeout": 30,
        "response_type": "JSON",
    }
    spec = DataSourceSpec(name=NAME, source=source, caching={"enabled": True, "ttl": 86400})
    with Session(engine) as session:
        session.add(db.DataSource.from_spec(spec))
        session.add(db.Run(run_id=RUN_ID))
        session.commit()


def application(url: str, upstream: str) -> FastAPI:
    app = FastAPI()
    engine = create_engine(url, pool_size=40, max_overflow=24)
    prepare(engine, upstream)
    sessions = sessionmaker(bind=engine)

    def session() -> Iterator[Session]:
        opened = sessions()
        try:
            yield opened
        finally:
            opened.close()

    @app.post("/v1/fetch-data")
    def fetch(request: schemas.DataBrokerRequest, opened: Annotated[Session, Depends(session)]) -> schemas.DataBrokerResponse:
        return DataSourceService(opened).request_data_from_broker(request)

    return app


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    uvicorn.run(
        application(sys.argv[2], sys.argv[3]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=False,
        backlog=4096,
        log_level="error",
    )
