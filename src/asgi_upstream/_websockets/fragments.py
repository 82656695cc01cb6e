"""Joins the frames of a WebSocket into messages."""

from io import BytesIO

from websockets.frames import Frame, Opcode


class MessageAssembler:
    """Joins the fragments of each message (RFC 6455 5.4)."""

    def __init__(self) -> None:
        self._is_text = False
        self._fragments: BytesIO | None = None

    def add(self, frame: Frame) -> str | bytes | None:
        """Return the message that the frame completes, if it completes one.

        Raises:
            UnicodeDecodeError: If a text message is not UTF-8.
        """
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return None
        content = bytes(frame.data)
        if self._fragments is not None or not frame.fin:
            # A list of small fragments would take thirty times the memory of their bytes.
            self._fragments = self._fragments or BytesIO()
            self._fragments.write(content)
            if not frame.fin:
                return None
            content, self._fragments = self._fragments.getvalue(), None
        return content.decode() if self._is_text else content
