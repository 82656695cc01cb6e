"""Turns the caller's request into a request to the upstream."""
