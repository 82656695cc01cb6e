"""Observers for `client_lifespan(observers=[...])`, one module per tool."""
