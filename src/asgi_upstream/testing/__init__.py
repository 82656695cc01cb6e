"""What a test of a relaying app needs: a scripted upstream, the app served, a check for leaks.

The pytest plugin, `pytest_asgi_upstream`, has the fixtures `upstream`, `serve` and `no_leaks`.
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
