"""The tests, and what they start, are on httpx; with TESTED_LIBRARY=httpx2 they are on httpx2."""

import os

ON_HTTPX2 = os.environ.get("TESTED_LIBRARY") == "httpx2"
if ON_HTTPX2:
    from tests.support.on_httpx2 import put_httpx2_in_place_of_httpx

    put_httpx2_in_place_of_httpx()
