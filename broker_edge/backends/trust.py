"""TLS material: contexts of the httpx engine, and the check of authorities for both engines.

Public roots, what is trusted beside them, and the identity shown to the peer. Made without the environment (no SSL_CERT_FILE,
no SSLKEYLOGFILE).
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certifi

from broker_edge.backends.wire import failure
from broker_edge.core.exchange import TlsOptions


def tls_context(options: TlsOptions, extra_ca: bytes | None = None) -> ssl.SSLContext:
    """A verifying client context offering HTTP/2 and HTTP/1.1; raises TLS_ERROR where the PEM can't be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["h2", "http/1.1"])
    for ca in (extra_ca, options.ca):
        if ca is not None:
            trust(context, ca)
    try:
        if options.identity is not None:
            with _as_file(options.identity) as path:
                context.load_cert_chain(path)
    except (ssl.SSLError, ValueError):
        raise failure("tls_material") from None
    return context


def trust(context: ssl.SSLContext, ca: bytes) -> None:
    """Trust every certificate of a PEM bundle; raises TLS_ERROR where there is none to read."""
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise failure("tls_material") from None


@contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """A path that holds the secret, as the ssl module reads a key from nothing else: in memory on Linux, else owner-only."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp()
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            yield path
    finally:
        if sys.platform != "linux":
            Path(path).unlink()
