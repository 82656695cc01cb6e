"""The limit of a relayed WebSocket. It does not need the `ws` extra."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default maximum size of a message from the upstream."""
