"""The options of a relayed WebSocket. They do not need the `ws` extra."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default maximum size of a message from the upstream."""


def validate_websocket_options(max_message_bytes: object, ping_interval: object) -> None:
    """Refuse values that make no sense.

    Raises:
        ValueError: If one of them is not positive.
    """
    if not (isinstance(max_message_bytes, int) and max_message_bytes > 0):
        raise ValueError(f"max_message_bytes={max_message_bytes!r}: give a number of bytes above 0")
    is_seconds = isinstance(ping_interval, int | float) and ping_interval > 0
    if ping_interval is not None and not is_seconds:
        raise ValueError(f"ping_interval={ping_interval!r}: give seconds above 0, or None for none")
