FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements-runtime.lock deploy/requirements-build.lock ./
# Every package is a wheel that matches a hash; pip compiles the bytecode here, as the running image can't write any.
RUN python -m venv --without-pip /opt/broker-edge \
    && pip --python /opt/broker-edge/bin/python install --no-cache-dir --require-hashes --only-binary :all: -r requirements-runtime.lock \
    && pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY broker_edge broker_edge
COPY migrations migrations
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && pip --python /opt/broker-edge/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM python:3.12-slim
LABEL org.opencontainers.image.title="broker-edge" \
      org.opencontainers.image.description="A Redis-cached, high-throughput edge proxy for external data" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 broker \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin broker \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/broker-edge
COPY --from=build /opt/broker-edge /opt/broker-edge
ENV PATH="/opt/broker-edge/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_BROKER_DATA_DIR=/var/lib/broker-edge
# Numeric, so that a cluster can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/broker-edge
VOLUME /var/lib/broker-edge
EXPOSE 6002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('DATA_BROKER_PORT', '6002') + '/healthz', timeout=4)"]
CMD ["broker-edge", "serve"]
