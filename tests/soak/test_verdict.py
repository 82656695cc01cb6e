"""A soak that calls everything right would show nothing."""

from dataclasses import replace

import pytest

from tests.soak.app import FRAME
from tests.soak.callers import Seen
from tests.soak.plan import Plan, Plans
from tests.soak.report import MB, Report, Sample
from tests.soak.verdict import outcome, wrong, wrong_upload

PLAN = Plan(number=7, size=1000)


def seen_of(plan: Plan, body: bytes | None = None, **attributes: object) -> Seen:
    seen = Seen(status=200, complete=True, fields={b"x-number": b"%d" % plan.number})
    seen.add(bytes(plan.body) if body is None else body)
    for name, value in attributes.items():
        setattr(seen, name, value)
    return seen


def test_a_plan_survives_its_target() -> None:
    plans = Plans(1, faults=True)
    for _ in range(1000):
        plan = plans.next()
        assert Plan.of(plan.target) == replace(plan, way="streamed")


def test_the_same_seed_makes_the_same_plans() -> None:
    first, second = Plans(3, faults=True), Plans(3, faults=True)
    assert [first.next() for _ in range(100)] == [second.next() for _ in range(100)]


def test_a_whole_answer_is_right() -> None:
    assert wrong(PLAN, seen_of(PLAN)) is None


@pytest.mark.parametrize(
    ("seen", "was"),
    [
        (seen_of(PLAN, bytes(PLAN.body[:999]) + b"?"), "other bytes"),
        (seen_of(PLAN, bytes(PLAN.body) + b"?"), "other bytes"),
        (seen_of(PLAN, bytes(PLAN.body[:500])), "short, and said to be whole"),
        (seen_of(PLAN, bytes(PLAN.body[:500]) + FRAME), "framed"),
        (seen_of(PLAN, complete=False), "cut"),
        (seen_of(PLAN, fields={b"x-number": b"8"}), "the answer to another"),
        (seen_of(PLAN, status=502), "502"),
        (seen_of(PLAN, status=0), "nothing"),
        (seen_of(PLAN, stray=True), "malformed, or with bytes behind the response"),
        (seen_of(PLAN, hung=True), "hung"),
    ],
)
def test_anything_else_is_wrong(seen: Seen, was: str) -> None:
    assert wrong(PLAN, seen) == was


@pytest.mark.parametrize(
    ("way", "fate", "right"),
    [
        ("streamed", "close_mid", "cut"),
        ("framed", "close_mid", "framed"),
        ("buffered", "close_mid", "502"),
        ("buffered", "stall_mid", "504"),
        ("streamed", "stall_before", "504"),
        ("streamed", "close_before", "502"),
    ],
)
def test_an_upstream_that_fails_is_never_seen_as_a_whole_answer(
    way: str, fate: str, right: str
) -> None:
    plan = replace(PLAN, way=way, fate=fate)
    half = bytes(plan.body[:500])
    as_seen = {
        "cut": seen_of(plan, half, complete=False),
        "framed": seen_of(plan, half + FRAME),
        "502": seen_of(plan, b"", status=502),
        "504": seen_of(plan, b"", status=504),
    }
    for name, seen in as_seen.items():
        assert outcome(plan, seen) == name
        if name == right:
            assert wrong(plan, seen) is None
    assert wrong(plan, seen_of(plan)) == "whole"
    assert wrong(plan, seen_of(plan, half)) == "short, and said to be whole"


def test_a_torn_upload_is_not_a_whole_one() -> None:
    plan = replace(PLAN, method="POST", upload=1000)
    assert wrong_upload(plan, seen_of(plan), None)
    assert wrong_upload(plan, seen_of(plan), "another digest")
    leaving = replace(plan, caller="leaves", until="upload")
    assert wrong_upload(leaving, Seen(), "any digest")
    assert wrong_upload(leaving, Seen(), None) is None


def test_a_report_fails_for_each_thing_that_must_not_be() -> None:
    def report() -> Report:
        report = Report("any", 0, reached=5, records={"completed": 5})
        report.right["whole"] = 5
        return report

    assert report().failures() == []
    for name, value in {
        "wrongs": ["one"],
        "open": 1,
        "connections": 1,
        "descriptors": (5, 6),
        "records": {"completed": 4},
        "noise": ["was never awaited"],
    }.items():
        bad = report()
        setattr(bad, name, value)
        assert len(bad.failures()) == 1, name


def test_growth_is_the_slope_of_the_second_half() -> None:
    report = Report("any", 0)
    for at in range(100):
        memory = 100 * MB + max(0, at - 50) * MB
        report.samples.append(Sample(at, memory, 0, 0, 0, 0, 0, 0))
    assert report.growth == pytest.approx(3600 * MB, rel=0.05)
