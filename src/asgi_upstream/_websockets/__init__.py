"""Relays WebSockets. Needs the `ws` extra, so it is imported only when it is used."""
