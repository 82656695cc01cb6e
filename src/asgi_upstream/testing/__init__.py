"""Test kit for apps that relay: a scripted upstream, a server for the app, a leak check.

The pytest plugin `pytest_asgi_upstream` has the fixtures `upstream`, `serve` and `no_leaks`.
"""

from ._answers import ScriptedResponse
from ._leaks import no_leaks
from ._received import ReceivedRequest
from ._serve import serve
from ._upstream import Upstream
from ._waiting import aeventually, eventually

__all__ = [
    "ReceivedRequest",
    "ScriptedResponse",
    "Upstream",
    "aeventually",
    "eventually",
    "no_leaks",
    "serve",
]
