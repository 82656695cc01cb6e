"""A guard tells whether a method is replaced, also if it was when the guard was made."""

import httpcore
import httpx
import pytest

from asgi_upstream._httpx import interception
from asgi_upstream._httpx.interception import MethodGuard

METHODS: list[tuple[type[object], str]] = [
    (httpx.AsyncClient, "send"),
    (httpx.AsyncClient, "_send_single_request"),
    (httpcore.AsyncConnectionPool, "handle_async_request"),
]
replaced = pytest.mark.parametrize(("cls", "name"), METHODS)


def other(*args: object) -> None:
    pass


@replaced
def test_guard_sees_a_method_while_it_is_replaced(
    cls: type[object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = MethodGuard(*METHODS)
    assert guard.is_intact()
    with monkeypatch.context() as patch:
        patch.setattr(cls, name, other)
        assert not guard.is_intact()
    assert guard.is_intact()


@replaced
def test_guard_made_while_replaced_finds_the_original_later(
    cls: type[object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cls, name, other)
        guard = MethodGuard(*METHODS)
        assert not guard.is_intact()
        assert not guard.is_intact()
    assert guard.is_intact()
    for again in METHODS:
        with monkeypatch.context() as patch:
            patch.setattr(*again, other)
            assert not guard.is_intact()
    assert guard.is_intact()


def test_guard_made_while_two_are_replaced_waits_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = METHODS
    with monkeypatch.context() as patch:
        patch.setattr(*second, other)
        with monkeypatch.context() as inner:
            inner.setattr(*first, other)
            guard = MethodGuard(*METHODS)
        assert not guard.is_intact()
    assert guard.is_intact()


def test_guard_of_a_missing_method_is_never_intact() -> None:
    assert not MethodGuard((httpx.AsyncClient, "_of_no_version")).is_intact()


def test_guard_does_not_look_again_while_the_same_tracer_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked for each request."""
    cls, name = METHODS[0]
    monkeypatch.setattr(cls, name, other)
    guard = MethodGuard((cls, name))
    monkeypatch.setattr(interception, "_find_original", None)
    assert not guard.is_intact()
