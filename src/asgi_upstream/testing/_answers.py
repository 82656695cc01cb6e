"""Scripts the response to a request in one line.

Three kinds of methods build a response, and each returns it: those that set the message (`json`,
`chunks`, `raw`, `callback`, ...), those that add a fault (`stall`, `close`, `reset`), and `then`,
which starts the response to the request after this one.
"""

import copy
import itertools
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Self, TypeAlias

from ._malformed import MALFORMED, MalformedKind
from ._received import ReceivedRequest
from ._steps import Fault, Step, is_data, with_faults

Headers: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
HeaderList: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class _Message:
    steps: Sequence[bytes | float] | None  # None echoes the request body.
    status: int | None = None  # None if the steps include the head.
    headers: Sequence[tuple[str, str]] = ()
    chunked: bool = False
    forever: bool = False


class ScriptedResponse:
    """A scripted response. Without further calls it is a 200 without content."""

    def __init__(self) -> None:
        self._message = _Message([b""], 200)
        self._faults: list[Fault] = []
        self._function: Callable[[ReceivedRequest], ScriptedResponse] | None = None
        self._next: ScriptedResponse | None = None
        self.is_early: bool = False

    # The message

    def status(self, status: int, *, headers: Headers = ()) -> Self:
        """Send a status without content."""
        return self.content(b"", status=status, headers=headers)

    def content(self, content: bytes, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send bytes with a Content-Length."""
        return self._set_message(_Message([content], status, _header_list(headers)))

    def text(self, text: str, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send plain text."""
        headers = _with_defaults([("content-type", "text/plain; charset=utf-8")], headers)
        return self.content(text.encode(), status=status, headers=headers)

    def json(self, value: object, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send a value as JSON."""
        headers = _with_defaults([("content-type", "application/json")], headers)
        return self.content(json.dumps(value).encode(), status=status, headers=headers)

    def chunks(
        self,
        *steps: bytes | float,
        every: float = 0,
        forever: bool = False,
        status: int = 200,
        headers: Headers = (),
    ) -> Self:
        """Send a chunked body.

        Arguments:
            steps: Bytes to send as one chunk, or seconds to wait.
            every: Seconds to wait after each chunk.
            forever: Repeat the steps until the other side disconnects.
            status: The status of the response.
            headers: The headers of the response.
        """
        if forever and not any(is_data(step) and step for step in steps):
            raise ValueError("forever=True needs bytes to send")
        paced: list[bytes | float] = []
        for step in steps:
            paced += [step, every] if is_data(step) and every else [step]
        return self._set_message(
            _Message(paced, status, _header_list(headers), chunked=True, forever=forever)
        )

    def events(
        self,
        *data: object,
        every: float = 0,
        forever: bool = False,
        status: int = 200,
        headers: Headers = (),
    ) -> Self:
        """Send an event stream.

        Arguments:
            data: The data of each event. Values other than strings are sent as JSON.
            every: Seconds to wait after each event.
            forever: Repeat the events until the other side disconnects.
            status: The status of the response.
            headers: The headers of the response.
        """
        headers = _with_defaults(
            [("content-type", "text/event-stream"), ("cache-control", "no-store")], headers
        )
        events = map(_event, data)
        return self.chunks(*events, every=every, forever=forever, status=status, headers=headers)

    def echo(self, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send the request body back with its content type."""
        return self._set_message(_Message(None, status, _header_list(headers)))

    def raw(self, *steps: bytes | float) -> Self:
        """Send bytes unchanged, including the head, then close. A number is seconds to wait."""
        return self._set_message(_Message(steps))

    def broken(self, kind: MalformedKind) -> Self:
        """Send a malformed message, such as "not-http". docs/testing.md lists the kinds."""
        return self.raw(MALFORMED[kind])

    def callback(self, function: "Callable[[ReceivedRequest], ScriptedResponse]") -> Self:
        """Send the response that `function` returns for the request.

        The function runs in the server's thread. If it raises, the response is a 500 with the
        traceback.
        """
        self._function = function
        return self

    # Faults

    def stall(self, seconds: float | None = None, *, after: int | None = None) -> Self:
        """Send nothing for a while.

        Arguments:
            seconds: How long to wait. None waits forever.
            after: The number of body bytes that are sent before. For `raw`, the head counts too.
                0 is right after the head, None before it.
        """
        return self._add_fault(Fault("stall", after, seconds))

    def close(self, *, after: int | None = None) -> Self:
        """Close the connection. `after` works as in `stall`."""
        return self._add_fault(Fault("end", after))

    def reset(self, *, after: int | None = None) -> Self:
        """Reset the connection. `after` works as in `stall`."""
        return self._add_fault(Fault("reset", after))

    def respond_early(self) -> Self:
        """Respond after the request head, and read the body afterwards if it still arrives."""
        self.is_early = True
        return self

    @property
    def then(self) -> "ScriptedResponse":
        """The response to the next matching request. The last response is repeated."""
        if self._next is None:
            self._next = ScriptedResponse()
        return self._next

    # Used by the upstream

    @property
    def next(self) -> "ScriptedResponse":
        """The response to the next matching request."""
        return self._next or self

    def resolve(self, request: ReceivedRequest) -> "ScriptedResponse":
        """Return the response to this request: this one, or the result of its callback."""
        if self._function is None:
            return self
        try:
            response = copy.copy(self._function(request).resolve(request))
        except Exception:
            return ScriptedResponse().text(traceback.format_exc(), status=500)
        response._faults = [*response._faults, *self._faults]
        return response

    @property
    def closes(self) -> bool:
        """Whether the connection closes afterwards. The end of a raw message is not known."""
        return self._message.status is None

    def steps(self, request: ReceivedRequest) -> Iterator[Step]:
        """Return the steps that answer a request, in order."""
        yield from (fault for fault in self._faults if fault.after is None)
        message = self._message
        body: Iterable[Step] = [request.body] if message.steps is None else message.steps
        later = [fault for fault in self._faults if fault.after is not None]
        if message.status is None:
            yield from with_faults(body, later)
            return
        yield self._head(message.status, request)
        if request.method == "HEAD" or message.status in (204, 304):
            return
        for step in with_faults(itertools.cycle(body) if message.forever else body, later):
            if not message.chunked or not is_data(step):
                yield step
            elif step:  # An empty chunk would end the body.
                yield b"%x\r\n%s\r\n" % (len(step), step)
        if message.chunked:
            yield b"0\r\n\r\n"

    def _head(self, status: int, request: ReceivedRequest) -> bytes:
        message, headers = self._message, HeaderList()
        if message.steps is None:
            headers += [
                ("content-type", request.headers.get("content-type", "application/octet-stream")),
                ("content-length", str(len(request.body))),
            ]
        elif message.chunked:
            headers += [("transfer-encoding", "chunked")]
        elif status not in (204, 304):
            headers += [("content-length", str(sum(map(len, filter(is_data, message.steps)))))]
        reason = responses.get(status, "Whatever")
        lines = [f"{name}: {value}" for name, value in _with_defaults(headers, message.headers)]
        return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")

    def _set_message(self, message: _Message) -> Self:
        for step in message.steps or ():
            if not isinstance(step, bytes | float | int):  # pyright: ignore
                raise TypeError(f"{step!r}: expected bytes to send or seconds to wait")
        for header in message.headers:
            # Fail here, not in the server's thread.
            ": ".join(header).encode("latin-1")
        self._message = message
        return self

    def _add_fault(self, fault: Fault) -> Self:
        self._faults.append(fault)
        return self


def _header_list(headers: Headers) -> HeaderList:
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def _with_defaults(defaults: HeaderList, headers: Headers) -> HeaderList:
    """Return the headers, and those defaults that they do not set."""
    given = _header_list(headers)
    names = {name.lower() for name, _ in given}
    return [*((name, value) for name, value in defaults if name not in names), *given]


def _event(data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
