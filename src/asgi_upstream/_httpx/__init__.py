"""Contains everything that depends on the internals of httpx, httpx2 and their httpcore."""
