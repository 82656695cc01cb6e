"""What an upstream answers, said in one line.

Three kinds of calls make an answer, and each returns it: what is sent (`json`, `chunks`, `raw`,
`calls`, ...), what goes wrong (`stalls`, `ends`, `resets`), and `then`, for the answer after this.
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
Fields: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class _Message:
    steps: Sequence[bytes | float] | None  # None: the body of the request
    status: int | None = None  # None: the steps are all of it, head included
    fields: Sequence[tuple[str, str]] = ()
    chunked: bool = False
    forever: bool = False


class ScriptedResponse:
    """What a request is answered: 200 and no content, unless said otherwise."""

    def __init__(self) -> None:
        self._message = _Message([b""], 200)
        self._faults: list[Fault] = []
        self._function: Callable[[ReceivedRequest], ScriptedResponse] | None = None
        self._next: ScriptedResponse | None = None
        self.is_early: bool = False

    # What is sent.

    def status(self, status: int, *, headers: Headers = ()) -> Self:
        """Send a status, and no content."""
        return self.content(b"", status=status, headers=headers)

    def content(self, content: bytes, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send bytes, with their length."""
        return self._set_message(_Message([content], status, _fields(headers)))

    def text(self, text: str, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send plain text."""
        fields = _with_defaults([("content-type", "text/plain; charset=utf-8")], headers)
        return self.content(text.encode(), status=status, headers=fields)

    def json(self, value: object, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send a value as JSON."""
        fields = _with_defaults([("content-type", "application/json")], headers)
        return self.content(json.dumps(value).encode(), status=status, headers=fields)

    def chunks(
        self,
        *steps: bytes | float,
        every: float = 0,
        forever: bool = False,
        status: int = 200,
        headers: Headers = (),
    ) -> Self:
        """Send each of some bytes as a chunk; a number among them is seconds to wait.

        Arguments:
            every: seconds to wait after each chunk.
            forever: begin again at the end, until the other side leaves.
        """
        if forever and not any(is_data(step) and step for step in steps):
            raise ValueError("forever=True needs bytes to send")
        paced: list[bytes | float] = []
        for step in steps:
            paced += [step, every] if is_data(step) and every else [step]
        return self._set_message(
            _Message(paced, status, _fields(headers), chunked=True, forever=forever)
        )

    def events(
        self,
        *data: object,
        every: float = 0,
        forever: bool = False,
        status: int = 200,
        headers: Headers = (),
    ) -> Self:
        """Send an event stream: an event for each string, and for each other value as JSON.

        `every`, `forever` as of `chunks`.
        """
        fields = _with_defaults(
            [("content-type", "text/event-stream"), ("cache-control", "no-store")], headers
        )
        events = map(_event, data)
        return self.chunks(*events, every=every, forever=forever, status=status, headers=fields)

    def echo(self, *, status: int = 200, headers: Headers = ()) -> Self:
        """Send back the body of the request, and its content type."""
        return self._set_message(_Message(None, status, _fields(headers)))

    def raw(self, *steps: bytes | float) -> Self:
        """Send these bytes as they are, head and all, and close; a number is seconds to wait."""
        return self._set_message(_Message(steps))

    def broken(self, kind: MalformedKind) -> Self:
        """Send what no client can take; the kinds, with their bytes, are in `broken.py`."""
        return self.raw(MALFORMED[kind])

    def callback(self, function: "Callable[[ReceivedRequest], ScriptedResponse]") -> Self:
        """Send what a function says to the request; it is called in the server's thread.

        Where it raises, the answer is 500 with the traceback.
        """
        self._function = function
        return self

    # What goes wrong.

    def stall(self, seconds: float | None = None, *, after: int | None = None) -> Self:
        """Be silent for so many seconds; for ever if not said.

        Arguments:
            after: so many bytes of the body were sent; of everything, for `raw`. 0 is after the
                head, and None before it.
        """
        return self._add_fault(Fault("stall", after, seconds))

    def close(self, *, after: int | None = None) -> Self:
        """Close the connection, `after` so many bytes as of `stalls`."""
        return self._add_fault(Fault("end", after))

    def reset(self, *, after: int | None = None) -> Self:
        """Reset the connection, `after` so many bytes as of `stalls`."""
        return self._add_fault(Fault("reset", after))

    def respond_early(self) -> Self:
        """Answer when the head is there; the body is read after that, if it still comes."""
        self.is_early = True
        return self

    @property
    def then(self) -> "ScriptedResponse":
        """What the next such request is answered. The last answer is given again and again."""
        if self._next is None:
            self._next = ScriptedResponse()
        return self._next

    # What the upstream asks.

    @property
    def next(self) -> "ScriptedResponse":
        """The answer for the next such request."""
        return self._next or self

    def resolve(self, request: ReceivedRequest) -> "ScriptedResponse":
        """The answer to this request: itself, or what its function says."""
        if self._function is None:
            return self
        try:
            made = copy.copy(self._function(request).resolve(request))
        except Exception:
            return ScriptedResponse().text(traceback.format_exc(), status=500)
        made._faults = [*made._faults, *self._faults]
        return made

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it: nobody knows where a raw message ends."""
        return self._message.status is None

    def steps(self, request: ReceivedRequest) -> Iterator[Step]:
        """All that is to be done for a request, in its order."""
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
            elif step:  # an empty chunk would be the end of the body
                yield b"%x\r\n%s\r\n" % (len(step), step)
        if message.chunked:
            yield b"0\r\n\r\n"

    def _head(self, status: int, request: ReceivedRequest) -> bytes:
        message, fields = self._message, Fields()
        if message.steps is None:
            fields += [
                ("content-type", request.headers.get("content-type", "application/octet-stream")),
                ("content-length", str(len(request.body))),
            ]
        elif message.chunked:
            fields += [("transfer-encoding", "chunked")]
        elif status not in (204, 304):
            fields += [("content-length", str(sum(map(len, filter(is_data, message.steps)))))]
        reason = responses.get(status, "Whatever")
        lines = [f"{name}: {value}" for name, value in _with_defaults(fields, message.fields)]
        return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")

    def _set_message(self, message: _Message) -> Self:
        for step in message.steps or ():
            if not isinstance(step, bytes | float | int):  # pyright: ignore
                raise TypeError(f"{step!r}: give bytes to send, or seconds to wait")
        for field in message.fields:
            ": ".join(field).encode("latin-1")  # else it would fail in the server's thread
        self._message = message
        return self

    def _add_fault(self, fault: Fault) -> Self:
        self._faults.append(fault)
        return self


def _fields(headers: Headers) -> Fields:
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def _with_defaults(defaults: Fields, headers: Headers) -> Fields:
    """The headers, and the defaults that are not among them."""
    fields = _fields(headers)
    named = {name.lower() for name, _ in fields}
    return [*((name, value) for name, value in defaults if name not in named), *fields]


def _event(data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
