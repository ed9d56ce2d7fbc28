"""TLS material: contexts of the httpx engine, and the check of authorities for both engines.

Public roots, what is trusted beside them, and the identity shown to the peer. Made without the environment (no SSL_CERT_FILE,
no SSLKEYLOGFILE).
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import certifi

from broker_edge.backends.wire import failure
from broker_edge.core.exchange import TlsOptions

_MAX_SESSIONS: Final = 1000


class ResumingContext(ssl.SSLContext):
    """A client's context that begins with the last session of the name it connects to (RFC 8446 section 2.2, RFC 5077).

    Event loops make their connections by `wrap_bio` and have no argument for a session. One context has one trust and one
    identity, and a session is kept under the name that its certificate was checked for: so resuming proves what the first
    handshake proved.
    """

    def __init__(self, _: int) -> None:
        self._sessions: OrderedDict[str | bytes | None, ssl.SSLSession] = OrderedDict()

    def remember(self, connection: ssl.SSLObject) -> None:
        """Keep a connection's session. To be called once bytes have come: TLS 1.3 sends tickets behind the handshake."""
        session = connection.session
        if session is None:
            return
        name = connection.server_hostname
        self._sessions[name] = session
        self._sessions.move_to_end(name)
        if len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        known = session or self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, known)


def tls_context(options: TlsOptions, extra_ca: bytes | None = None) -> ResumingContext:
    """A verifying client context offering HTTP/2 and HTTP/1.1; raises TLS_ERROR where the PEM can't be read."""
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
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
