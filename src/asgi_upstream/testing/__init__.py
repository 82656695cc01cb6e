"""What a test of a relaying app needs: a scripted upstream, the app served, a check for leaks.

The pytest plugin, `pytest_asgi_upstream`, has the fixtures `upstream`, `serve` and `no_leaks`.
"""

from .answers import ScriptedResponse
from .leaks import no_leaks
from .received import ReceivedRequest
from .serving import serve
from .upstream import Upstream
from .waiting import aeventually, eventually

__all__ = [
    "ReceivedRequest",
    "ScriptedResponse",
    "Upstream",
    "aeventually",
    "eventually",
    "no_leaks",
    "serve",
]
