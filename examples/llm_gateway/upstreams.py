"""The model providers: their addresses, keys and models."""

import os
from typing import NamedTuple

from fastapi import HTTPException


class Upstream(NamedTuple):
    """A provider. The headers hold the gateway's key there."""

    url: str
    headers: dict[str, str]
    models: tuple[str, ...]
    api: str = "openai"


UPSTREAMS = {
    "swift": Upstream(
        os.environ.get("SWIFT_URL", "http://127.0.0.1:9001/v1"),
        {"authorization": f"Bearer {os.environ.get('SWIFT_KEY', 'sk-of-the-gateway-at-swift')}"},
        ("swift-1", "slow", "refuses"),
    ),
    "deep": Upstream(
        os.environ.get("DEEP_URL", "http://127.0.0.1:9001/v1"),
        {"authorization": f"Bearer {os.environ.get('DEEP_KEY', 'sk-of-the-gateway-at-deep')}"},
        ("deep-1", "dies"),
    ),
    "wise": Upstream(
        os.environ.get("WISE_URL", "http://127.0.0.1:9001/v1"),
        {
            "x-api-key": os.environ.get("WISE_KEY", "sk-of-the-gateway-at-wise"),
            "anthropic-version": "2023-06-01",
        },
        ("wise-1", "wise-dies"),
        "anthropic",
    ),
}


def find_upstream(model: object, api: str) -> str:
    """Return the name of the upstream that has the model. Answer 404 if there is none."""
    for name, upstream in UPSTREAMS.items():
        if upstream.api == api and model in upstream.models:
            return name
    raise HTTPException(404, "unknown model; see /v1/models")
