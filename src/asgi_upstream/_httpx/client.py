"""The client that a lifespan creates: it remembers the URLs of its last requests."""

from typing import TYPE_CHECKING, Any

import httpx

from .._caching import BoundedCache
from .flavors import get_library, subclass_for

MAX_URLS = 256
"""URLs that a client remembers."""

MAX_URL_LENGTH = 256

if TYPE_CHECKING:
    _Client = httpx.AsyncClient
else:
    _Client = object  # `client_class` adds the library's AsyncClient


class URLCachingClient(_Client):
    """An `AsyncClient` that does not parse the same URL again.

    httpx parses the URL of a request, and parses it again when it has merged it with `base_url`.
    That is half of `build_request`. A URL with a query or user info is not remembered, because it
    may carry a secret.
    """

    _upstream_base: httpx.URL | None = None
    _upstream_urls: BoundedCache[str, httpx.URL]

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:
        if type(url) is not str:
            return super().build_request(method, url, **options)
        if self._upstream_base is not self.base_url:
            self._upstream_base, self._upstream_urls = self.base_url, BoundedCache(MAX_URLS)
        merged = self._upstream_urls.get(url)
        request = super().build_request(method, url if merged is None else merged, **options)
        # `params={}` drops the query of `base_url`, which the next request needs.
        remember = merged is None and options.get("params") is None
        if remember and _is_harmless(url) and _is_merged(request.url):
            self._upstream_urls.keep(url, request.url)
        return request


def _is_harmless(url: str) -> bool:
    return len(url) <= MAX_URL_LENGTH and "?" not in url and "@" not in url


def _is_merged(url: httpx.URL) -> bool:
    """Whether httpx would not merge the URL with `base_url` again, and added no `params`."""
    return url.is_absolute_url and not url.query


def client_class(library_class: type[httpx.AsyncClient]) -> type[httpx.AsyncClient]:
    """Return `URLCachingClient` for the `AsyncClient` of httpx or httpx2."""
    return subclass_for(URLCachingClient, library_class)


def is_plain_client_class(cls: type[Any]) -> bool:
    """Whether a class is the library's `AsyncClient` itself, or the one of `client_class`."""
    library_class = get_library(cls).AsyncClient
    return cls is library_class or cls is client_class(library_class)
