"""Turns the failure of an exchange into its ending and its log line."""

from collections.abc import Mapping
from typing import Any

import httpx

from .. import errors
from .._clients import get_client_state
from .._httpx.exceptions import is_httpx_error
from ..records import Outcome
from .ending import Ending
from .recording import ExchangeRecorder, route_template


def map_failure(
    failure: Exception,
    client: object,
    request: httpx.Request,
    recorder: ExchangeRecorder | None,
    app_outcome: Outcome,
) -> Ending:
    """Return the ending of an exchange that raised `failure`.

    If the lifespan has closed the client, the upstream did not fail, and the exchange is cancelled.

    Arguments:
        recorder: The recorder of the exchange. Without one, the outcome is not recorded.
        app_outcome: The outcome if the app's own code failed.
    """
    if is_httpx_error(failure, httpx.RequestError):
        failure.request = request  # like httpx's client
    if get_client_state(client).is_closing and errors.is_upstream_failure(failure):
        return Ending(Outcome.CANCELLED, errors.ExchangeCancelled())
    error = errors.map_exception(failure) or failure
    outcome = app_outcome if recorder is None else recorder.classify_failure(error, app_outcome)
    return Ending(outcome, error)


def log_ending(ending: Ending, request: httpx.Request, scope: Mapping[str, Any]) -> None:
    """Log the failure of the upstream, unless the exchange was cancelled."""
    if isinstance(ending.error, errors.UpstreamError) and ending.outcome is not Outcome.CANCELLED:
        errors.log_failure(ending.error, request, route_template(scope))
