"""Runs one exchange: send the request, relay the response, close it.

The whole exchange is one block, `Exchange.run`. Nothing is open before or after it, however it
ends: the upstream fails, the caller disconnects, the deadline passes, or the task is cancelled.
"""

from typing import cast

import anyio
import httpx
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import errors
from .._headers import RawHeaders
from .._httpx.fast_path import direct_transport
from .._httpx.requests import ForwardedRequest, copy_with_headers
from .._logging import logger
from ..records import Outcome
from .decoding import accept_whole_decodable
from .downstream import Caller, CallerDisconnected
from .ending import COMPLETED, REPLACED, Ending
from .failure import log_ending, map_failure
from .options import ExchangeOptions, SendRaw, StreamErrorHook
from .paths import relay_over_fast_path, relay_through_httpx
from .recording import RecordedExchange
from .relaying import ResponseRelay
from .scope import ExchangeScope

ERROR_CHUNK_TIMEOUT = 1.0
"""Seconds that `on_stream_error` may delay a cancellation or the end after the deadline."""


class Exchange:
    """One request to the upstream, and one response to the caller.

    Arguments:
        status: The status for the caller instead of the upstream's.
        header_overrides: Headers for the caller that replace the upstream's.
    """

    def __init__(
        self, options: ExchangeOptions, status: int | None, header_overrides: RawHeaders
    ) -> None:
        self._options = options
        self._decodes_body = options.decodes_body
        self.request: httpx.Request = options.request
        if self._decodes_body:
            headers = accept_whole_decodable(options.request.headers.raw)
            self.request = copy_with_headers(options.request, headers, options.library)
        self._status = status
        self._header_overrides = header_overrides

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Run the exchange. Return True if the server accepted the complete response.

        Raises:
            UpstreamError: If the upstream failed. After the start of the response, it closes the
                caller's connection.
            Exception: Whatever `on_response` or `transform` raised.
        """
        options = self._options
        with RecordedExchange(
            self, options.client, options.observers, options.library, scope
        ) as recorded:
            caller = Caller(scope, receive, send)
            transport = (
                None if options.on_response else direct_transport(options.client, self.request)
            )
            send_raw: SendRaw | None = getattr(transport, "send_raw", None)
            limits = ExchangeScope(receive, options.deadline, plain=send_raw is not None)
            relay = ResponseRelay(
                options, self.request, self._status, self._header_overrides, caller, limits,
                recorded.recorder,
            )  # fmt: skip
            # Everything upstream is closed when this returns.
            failure = await self._relay(relay, caller, limits, transport, send_raw)
            recorded.ending = ending = self._determine_ending(failure, relay, caller, limits)
            if ending.is_disconnect:
                await caller.send_client_closed()
                return False
            if ending is REPLACED and relay.replacement is not None:
                return await _send_replacement(recorded, relay.replacement, scope, receive, send)
            chunk = relay.final_chunk
            if ending.error is not None:
                chunk = await self._conclude_failure(ending, ending.error, caller, scope)
            return await self._send_final_chunk(recorded, chunk, caller, limits, scope)

    async def _relay(
        self,
        relay: ResponseRelay,
        caller: Caller,
        limits: ExchangeScope,
        transport: httpx.AsyncBaseTransport | None,
        send_raw: SendRaw | None,
    ) -> Exception | None:
        """Send the request and relay the response. Return the exception if that failed."""
        options, request = self._options, self.request
        failure: Exception | None = None
        if self._decodes_body:
            send_raw = None
        try:
            async with limits:
                try:
                    if getattr(request, "pending_body", None) is not None:
                        await cast(ForwardedRequest, request).resolve_body()
                    if send_raw is None or not await relay_over_fast_path(
                        send_raw, options, request, relay, limits
                    ):
                        await relay_through_httpx(transport, options, request, relay, limits)
                except Exception as exc:  # If it left the scope, it could become an ExceptionGroup.
                    failure = exc
        except anyio.get_cancelled_exc_class():  # `limits` has taken back its own cancellation.
            on_stream_error = options.on_stream_error
            if caller.started and on_stream_error is not None and not limits.disconnected:
                await _send_error_chunk(caller, on_stream_error)
            raise
        return failure

    def _determine_ending(
        self,
        failure: Exception | None,
        relay: ResponseRelay,
        caller: Caller,
        limits: ExchangeScope,
    ) -> Ending:
        """Return how the exchange ended: the deadline, a disconnect, a failure or its own end."""
        if limits.disconnected:
            return Ending(caller.disconnect_outcome)
        if limits.deadline_passed and (limits.cancelled_caught or failure):
            return Ending(Outcome.DEADLINE, errors.deadline_error(self._options.deadline))
        if failure is None:
            return COMPLETED if relay.replacement is None else REPLACED
        if isinstance(failure, CallerDisconnected | ClientDisconnect):
            return Ending(caller.disconnect_outcome)
        return map_failure(
            failure, self._options.client, self.request, relay.recorder, relay.outcome_if_app_raises
        )

    async def _conclude_failure(
        self, ending: Ending, error: Exception, caller: Caller, scope: Scope
    ) -> bytes:
        """Return the final chunk of a failed exchange, or raise the error."""
        log_ending(ending, self.request, scope)
        if caller.started and self._options.on_stream_error is not None:
            try:
                chunk = _call_on_stream_error(self._options.on_stream_error, error)
            except Exception as exc:
                error = exc
            else:
                if not isinstance(error, errors.UpstreamError):  # No server will log it.
                    logger.error(
                        "the app failed in a body that its on_stream_error ended", exc_info=error
                    )
                return chunk
        if caller.started:
            await caller.abort()
        raise error

    async def _send_final_chunk(
        self,
        recorded: RecordedExchange,
        chunk: bytes,
        caller: Caller,
        limits: ExchangeScope,
        scope: Scope,
    ) -> bool:
        """Complete the response, after everything upstream is closed and nothing listens any more.

        Servers report a disconnect after the last chunk although the caller is still connected.
        """
        failed = recorded.ending.error is not None
        try:
            # After the deadline, still allow a moment to send the error chunk.
            with limits.remaining_time(at_least=ERROR_CHUNK_TIMEOUT if failed else 0):
                if limits.has_unread_request:
                    await caller.send_last_chunk_and_drain(chunk)
                else:
                    await caller.send_body(chunk, more=False)
        except CallerDisconnected:
            if not failed:
                recorded.ending = Ending(caller.disconnect_outcome)
            return False
        except TimeoutError:
            error = recorded.ending.error
            if error is None:
                error = errors.deadline_error(self._options.deadline)
                recorded.ending = Ending(Outcome.DEADLINE, error)
                log_ending(recorded.ending, self.request, scope)
            raise error from error.__cause__
        return True


async def _send_replacement(
    recorded: RecordedExchange, replacement: Response, scope: Scope, receive: Receive, send: Send
) -> bool:
    try:
        await replacement(scope, receive, send)
    except Exception as exc:
        recorded.ending = Ending(Outcome.REPLACED, exc)
        raise
    return True


async def _send_error_chunk(caller: Caller, on_stream_error: StreamErrorHook) -> None:
    """Send the error chunk of a cancelled exchange.

    Delays the cancellation by at most `ERROR_CHUNK_TIMEOUT`.
    """
    with anyio.move_on_after(ERROR_CHUNK_TIMEOUT, shield=True):
        try:
            chunk = _call_on_stream_error(on_stream_error, errors.ExchangeCancelled())
            await caller.send_body(chunk, more=False)
        except (CallerDisconnected, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # A middleware in between has stopped reading the body.
        except Exception:
            logger.warning("the on_stream_error of a cancelled exchange failed", exc_info=True)


def _call_on_stream_error(on_stream_error: StreamErrorHook, error: Exception) -> bytes:
    chunk = on_stream_error(error)
    if not isinstance(chunk, bytes):  # pyright: ignore
        raise TypeError(f"on_stream_error returned {type(chunk).__name__}, not bytes")
    return chunk
