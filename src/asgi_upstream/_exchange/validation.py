"""Refuses arguments of the public functions that make no sense, at the call that has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._httpx.flavors import describe_type
from .._httpx.requests import request_origin
from ..records import Observer, check_observers


def validate_request(name: str, client: object, request: Any) -> None:
    """Refuse arguments that are not an async client and a request with a host.

    Arguments:
        name: The class or function that was called. Messages name it.

    Raises:
        TypeError: If `client` or `request` is something else.
        ValueError: If the request has no host.
    """
    if not hasattr(client, "aclose"):
        raise TypeError(
            f"{name} needs an httpx.AsyncClient, not {describe_type(client)}: write "
            f"{name}(client, request) with one that client_lifespan() shares, or use a sync client "
            f"in a `def` endpoint and return a Response"
        )
    if not (hasattr(request, "extensions") and hasattr(request, "method")):
        raise TypeError(
            f"{name} needs the httpx.Request to send, not {describe_type(request)}: write "
            f"{name}(client, client.build_request('GET', url)), or for a response that is open "
            f"StreamedResponse.from_response(response)"
        )
    if not request_origin(request).raw_host:
        raise ValueError(
            f"the request for {str(request.url)!r} has no host: give the client a base_url= "
            f"such as 'https://api.example', or the request a full URL"
        )


def validate_options(options: Mapping[str, Any]) -> None:
    """Refuse invalid options of a response, before there is a request.

    Raises:
        TypeError: If a function is not callable, or an observer is async.
        ValueError: If a number is out of range.
    """
    functions = ("transform", "on_response", "on_stream_error")
    validate_callables(**{name: options.get(name) for name in functions})
    validate_values(
        options.get("status_code"),
        options.get("deadline"),
        options.get("heartbeat"),
        options.get("observers", ()),
    )


def validate_values(
    status_code: int | None,
    deadline: float | None,
    heartbeat: float | None,
    observers: Sequence[Observer],
) -> None:
    """Refuse invalid values.

    Raises:
        TypeError: If an observer is async or not callable.
        ValueError: If a number is out of range.
    """
    if observers:
        check_observers(observers)
    if deadline is not None:
        validate_seconds("deadline", deadline)
    if heartbeat is not None:
        validate_seconds("heartbeat", heartbeat)
    if status_code is not None and not 200 <= status_code < 600:
        raise ValueError(f"status_code={status_code!r}: give a final status, 200 to 599")


def validate_callables(**functions: object) -> None:
    """Refuse a hook that is not a function.

    Raises:
        TypeError: If one is not callable.
    """
    for argument, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{argument}={value!r}: give a function")


def validate_seconds(argument: str, seconds: object) -> None:
    """Refuse a time that is not positive. None means no limit.

    Raises:
        ValueError: If it is not.
    """
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise ValueError(f"{argument}={seconds!r}: give seconds above 0, or None for none")


def validate_size(argument: str, size: object) -> None:
    """Refuse a limit in bytes that is not positive.

    Raises:
        ValueError: If it is not.
    """
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f"{argument}={size!r}: give a number of bytes above 0")
