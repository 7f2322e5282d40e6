"""How benchmarks judge: a wrong verdict would hide what got slower, or stop what did not."""

import msgspec
import pytest

from bench.contestant import Metrics, Round, Row
from bench.ratios import RATIOS, Ratio, Value, judge, rows_of
from bench.report import Report, as_text, report


def rates(**rows: float) -> dict[str, dict[str, float]]:
    return {
        row: {"entries_per_s": rate, "p50_ms": 2.0, "p99_ms": 6.0} for row, rate in rows.items()
    }


def _never(_: Round) -> Metrics:
    raise NotImplementedError


def summed(rounds: list[dict[str, dict[str, float]]], *ratios: Ratio) -> Report:
    names = list(rounds[0])
    rows = [Row(name, f"the {name}", _never) for name in names]
    return report(rows, rounds, ratios, 1.0, {"etcd": "there is no etcd"}, 0.01)


FAST = Ratio("fast", "top ÷ bottom", Value("top"), Value("bottom"), at_least=2)
EVEN = Ratio("even", "p99 ÷ p50", Value("top", "p99_ms"), Value("top", "p50_ms"), at_most=3)
SOON = Ratio("soon", "start", Value("top", "p50_ms"), None, at_most=1, unit=" s")


def test_a_ratio_is_taken_within_each_round_and_the_median_counts() -> None:
    # Medians of the sides would give 20 ÷ 10; a noisy round must not make up for the others.
    rounds = [
        rates(top=10, bottom=10),
        rates(top=20, bottom=20),
        rates(top=40, bottom=10),
        rates(top=30, bottom=10),
        rates(top=11, bottom=10),
    ]
    verdict = judge(FAST, rounds)
    assert (verdict.median, verdict.lowest, verdict.highest) == (1.1, 1.0, 4.0)
    assert verdict.met is False


@pytest.mark.parametrize(("top", "met"), [(19, False), (20, True), (21, True)])
def test_at_least_holds_from_the_bound_on(top: float, met: bool) -> None:
    assert judge(FAST, [rates(top=top, bottom=10)]).met is met


@pytest.mark.parametrize(("bound", "met"), [(2.9, False), (3, True), (3.1, True)])
def test_at_most_holds_up_to_the_bound(bound: float, met: bool) -> None:
    assert judge(EVEN._replace(at_most=bound), [rates(top=1)]).met is met


def test_without_a_bottom_the_value_itself_is_bounded() -> None:
    verdict = judge(SOON, [rates(top=1)])
    assert (verdict.met, verdict.median, verdict.bound) == (False, 2.0, "≤ 1 s")


def test_what_was_not_measured_is_neither_kept_nor_lost() -> None:
    verdict = judge(FAST, [rates(top=1)])
    assert (verdict.met, verdict.missing) == (None, "without bottom")
    assert judge(FAST, []).met is None
    assert summed([rates(top=1)], FAST).short_of == []


def test_rounds_that_left_out_a_slow_row_do_not_count_for_its_ratio() -> None:
    assert judge(FAST, [rates(top=30, bottom=10), rates(top=1)]).median == 3.0


def test_the_report_names_each_ratio_that_falls_short() -> None:
    found = summed([rates(top=10, bottom=10), rates(top=12, bottom=10)], FAST, EVEN, SOON)
    assert [verdict.name for verdict in found.short_of] == ["fast", "soon"]
    text = as_text(found).splitlines()
    assert "short of: fast, soon" in text
    (fast,) = (line for line in text if line.startswith("fast"))
    assert "1.10 (1.00 to 1.20)" in fast
    assert fast.endswith("FALLS SHORT")
    (even,) = (line for line in text if line.startswith("even"))
    assert even.endswith("ok")
    (row,) = (line for line in text if line.startswith("the top"))
    assert "entries/s 11 (10 to 12)" in row
    assert "etcd: left out, there is no etcd" in text


def test_the_report_survives_its_file() -> None:
    found = summed([rates(top=10, bottom=10)], FAST)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Report) == found


def test_a_busy_machine_is_named() -> None:
    found = summed([rates(top=1)])
    assert "too much" not in as_text(found)
    busy = msgspec.structs.replace(found, others_share=0.3)
    assert "others took 30% of the machine" in as_text(busy)
    assert "too much" in as_text(busy)


def test_every_ratio_names_rows_that_some_contestant_has() -> None:
    from bench.__main__ import contestants  # noqa: PLC0415 - all clients are imported with it

    rows = {row.name for each in contestants() for row in each.rows()}
    assert set(rows_of(RATIOS, ["*"])) <= rows
    assert len({ratio.name for ratio in RATIOS}) == len(RATIOS)
