"""TLS with certificates of an authority that only the test knows."""

import ssl
from typing import NamedTuple

import trustme


class TLSContexts(NamedTuple):
    """A server's context, and one of a client that trusts the server."""

    server: ssl.SSLContext
    trust: ssl.SSLContext


def make_tls_contexts(*names: str) -> TLSContexts:
    """Return contexts for a server with these host names or addresses."""
    authority = trustme.CA()
    server, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(*names).configure_cert(server)
    authority.configure_trust(trust)
    return TLSContexts(server, trust)
