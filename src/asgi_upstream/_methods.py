"""Sets of HTTP methods, each defined once."""

WITHOUT_BODY = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"))
"""Methods that rarely have a body (RFC 9110 9.3)."""

WITH_BODY = frozenset(("PATCH", "POST", "PUT"))
"""Methods for which an empty body has a Content-Length of 0 (RFC 9110 8.6)."""

NEVER_FORWARDED = frozenset(("CONNECT", "TRACE"))
"""Methods that are for this server (RFC 9110 9.3.6, 9.3.8)."""

USUAL = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
"""Methods for the Allow header of a 405 if all methods are forwarded."""

IDEMPOTENT = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"))
"""Methods of requests that may be sent twice (RFC 9110 9.2.2)."""
