"""Runs one exchange: the request to the upstream, and the response to the caller."""
