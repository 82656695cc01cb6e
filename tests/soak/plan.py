"""What one exchange is to be: what the caller asks of the upstream, and what the caller does.

A plan is all that both ends need: it travels in the request's target, and the bodies follow from
its number. So each end knows what it must see, and a plan that went wrong can be carried out again.
"""

import random
from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl, urlencode, urlsplit

KB, MB = 1 << 10, 1 << 20

_BYTES = random.Random("soak").randbytes(8 * MB)

BEFORE = ("close_before", "reset_before", "stall_before")
MID_BODY = ("close_mid", "reset_mid", "stall_mid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One exchange. All sizes are bytes, all times seconds.

    Attributes:
        way: how the app relays it: streamed, framed (with an error frame), buffered or forwarded.
        line: direct to the upstream, or faulty: through the proxy that does harm.
        fate: what the upstream does.
        framing: of the response: length, chunked, or close (the end of the connection is its end).
        size: of the response's body.
        cut: where in the body the upstream fails.
        piece: what the upstream writes at a time.
        pause: between two pieces.
        upload, upload_chunked, upload_piece, upload_pause: the same of the request; -1 for none.
        caller: reads, dawdles, leaves (FIN) or resets (RST).
        until: what a caller who leaves waits for: nothing, a time, the body, or the upload.
        patience: how much of that: seconds or bytes.
    """

    number: int
    way: str = "streamed"
    line: str = "direct"
    method: str = "GET"
    fate: str = "whole"
    framing: str = "length"
    size: int = 0
    cut: int = 0
    piece: int = 64 * KB
    pause: float = 0.0
    upload: int = -1
    upload_chunked: bool = False
    upload_piece: int = 64 * KB
    upload_pause: float = 0.0
    caller: str = "reads"
    until: str = "nothing"
    patience: float = 0.0

    @property
    def target(self) -> str:
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _IN_PATH}
        return f"/{self.way}/{self.line}/{self.fate}/{self.number}?{urlencode(rest)}"

    @classmethod
    def of(cls, target: str) -> "Plan":
        """The plan in a target, also where the relay has taken the first part of its path away."""
        url = urlsplit(target)
        given = dict(parse_qsl(url.query))
        given["line"], given["fate"], given["number"] = url.path.split("/")[-3:]
        read = {f.name: _read(f.type, given[f.name]) for f in fields(cls) if f.name in given}
        return cls(**read)  # type: ignore[arg-type]

    @property
    def body(self) -> memoryview:
        """Of the response."""
        return _content(self.number, self.size)

    @property
    def sent_up(self) -> memoryview:
        """The body of the request."""
        return _content(self.number + 1, max(self.upload, 0))

    @property
    def is_quick(self) -> bool:
        """Nothing in it takes time, so that the time it takes is the relay's."""
        direct = self.line == "direct" and self.fate == "whole" and self.caller == "reads"
        return direct and self.upload < 0 and self.size < 2 * KB and not self.pause

    @property
    def goes_away(self) -> bool:
        return self.caller in ("leaves", "resets")


_IN_PATH = ("way", "line", "fate", "number")


def _read(kind: object, text: str) -> object:
    if kind is bool:
        return text == "True"
    return kind(text) if isinstance(kind, type) else text


def _content(number: int, size: int) -> memoryview:
    at = number * 7919 % (len(_BYTES) - 4 * MB)
    return memoryview(_BYTES)[at : at + size]


def _for_a_faulty_line(plan: Plan) -> Plan:
    """Small, for a byte may take its time; with an end that can be told from a broken line."""
    size, upload = min(plan.size, 100 * KB), min(plan.upload, 100 * KB)
    framing = "chunked" if plan.framing == "close" else plan.framing
    cut = max(0, min(plan.cut, size - 1))
    return replace(plan, size=size, upload=upload, framing=framing, cut=cut)


class Plans:
    """Plans without end, the same for the same seed."""

    def __init__(self, seed: int, *, faults: bool) -> None:
        self._random = random.Random(seed)
        self._faults = faults
        self._number = 0

    def next(self) -> Plan:
        r = self._random
        self._number += 1
        ways = ["streamed", "framed", "buffered", "forwarded"]
        base: dict[str, object] = {
            "number": self._number,
            "way": r.choices(ways, [4, 1, 2, 4])[0],
            "line": "faulty" if self._faults and r.random() < 0.3 else "direct",
        }
        kinds = [self._whole, self._events, self._head, self._uploaded, self._refused]
        kinds += [self._broken, self._left, self._left_uploading]
        kind = r.choices(kinds, [40, 5, 5, 14, 4, 12, 14, 6])[0]
        plan = Plan(**base | kind())  # type: ignore[arg-type]
        return _for_a_faulty_line(plan) if plan.line == "faulty" else plan

    def _size(self) -> int:
        r = self._random
        most = r.choices([2 * KB, 200 * KB, 4 * MB], [6, 3, 1])[0]
        return r.randrange(most)

    def _answer(self) -> dict[str, object]:
        r = self._random
        piece = r.choice([1 * KB, 8 * KB, 64 * KB, 300 * KB])
        return {"size": self._size(), "framing": r.choice(["length", "chunked"]), "piece": piece}

    def _reader(self) -> str:
        return self._random.choices(["reads", "dawdles"], [5, 1])[0]

    def _whole(self) -> dict[str, object]:
        framing = self._random.choices(["length", "chunked", "close"], [5, 4, 1])[0]
        return self._answer() | {"framing": framing, "caller": self._reader()}

    def _events(self) -> dict[str, object]:
        r = self._random
        size = r.randrange(1, 40) * 100
        return {"size": size, "framing": "chunked", "piece": 100, "pause": r.uniform(0.005, 0.05)}

    def _head(self) -> dict[str, object]:
        return self._answer() | {"method": "HEAD"}

    def _up(self) -> dict[str, object]:
        r = self._random
        return {
            "method": r.choice(["POST", "PUT"]),
            "upload": self._size(),
            "upload_chunked": r.random() < 0.5,
            "upload_piece": r.choice([4 * KB, 64 * KB, 256 * KB]),
        }

    def _uploaded(self) -> dict[str, object]:
        slow = {"upload": 40 * KB, "upload_piece": 4 * KB, "upload_pause": 0.03}
        plan = self._up() | (slow if self._random.random() < 0.2 else {})
        return plan | self._answer() | {"caller": self._reader()}

    def _refused(self) -> dict[str, object]:
        """The upstream answers early: it refuses the upload, or it takes it and reads on."""
        fate = self._random.choice(["refuse", "early"])
        slow = {"upload": 1 * MB, "upload_piece": 64 * KB, "upload_pause": 0.01}
        return self._up() | slow | {"fate": fate, "size": self._random.randrange(64 * KB)}

    def _broken(self) -> dict[str, object]:
        r = self._random
        fate = r.choice([*BEFORE, *MID_BODY, "stall_upload"])
        if fate == "stall_upload":
            return self._up() | {"fate": fate, "upload": 4 * MB}
        plan = self._answer() | {"fate": fate, "caller": self._reader()}
        if fate in BEFORE:
            return plan | (self._up() if r.random() < 0.3 else {})
        size = 1 + self._size()
        framing = "close" if fate == "reset_mid" and r.random() < 0.3 else plan["framing"]
        return plan | {"size": size, "cut": r.randrange(size), "framing": framing}

    def _left(self) -> dict[str, object]:
        r = self._random
        gone: dict[str, object] = {"caller": r.choice(["leaves", "resets"]), "size": self._size()}
        until = r.choice(["nothing", "time", "body"])
        if until != "body":
            fate = r.choice(["whole", "never", "drip"])
            return gone | {"fate": fate, "until": until, "patience": r.uniform(0, 0.7)}
        fate = r.choice(["drip", "pour"])
        most = 2 * KB if fate == "drip" else 1 * MB
        return gone | {
            "way": "streamed",
            "fate": fate,
            "until": until,
            "patience": r.randrange(most),
        }

    def _left_uploading(self) -> dict[str, object]:
        r = self._random
        up = self._up()
        upload = 2 * KB + self._size()
        return up | {
            "upload": upload,
            "caller": r.choice(["leaves", "resets"]),
            "until": "upload",
            "patience": r.randrange(min(upload - 1 * KB, 1 * MB)),
        }
