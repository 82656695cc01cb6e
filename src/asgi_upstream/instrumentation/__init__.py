"""Observers for `client_lifespan(observers=[...])`, a module for each tool that wants to know."""
