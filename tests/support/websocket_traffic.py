"""Sends messages in a thread, and reads them."""

import threading
import time
from collections.abc import Callable

from tests.support.websocket_wire import BINARY, PONG, End, Frame


class Doing(threading.Thread):
    """What would block a test, done beside it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as exc:
            self.failure = exc

    @property
    def is_done(self) -> bool:
        return not self.is_alive()

    def finish(self, seconds: float = 30) -> None:
        self.join(seconds)
        assert self.is_done, "still at it"
        if self.failure is not None:
            raise self.failure


MB = 1 << 20


def say(end: End, frames: list[Frame]) -> Doing:
    return Doing(
        lambda: end.socket.sendall(
            b"".join(end.framed(f.opcode, f.payload, fin=f.fin) for f in frames)
        )
    )


def hear(end: End) -> Frame:
    """The next message, past the answers to one's own pings."""
    while (frame := end.message()).opcode == PONG:
        pass
    return frame


class Flood:
    """Messages of 64 KiB on one end, as many as go."""

    def __init__(self, end: End, megabytes: int) -> None:
        self.sent = 0
        self._data, self._count = end.framed(BINARY, b"x" * 65536), megabytes * 16
        self._end = end
        end.socket.settimeout(60)
        self.doing = Doing(self._send)

    def _send(self) -> None:
        for _ in range(self._count):
            self._end.socket.sendall(self._data)
            self.sent += 65536

    def is_held_back(self) -> bool:
        before = self.sent
        time.sleep(0.4)  # much longer than a message takes
        return before == self.sent and not self.doing.is_done
