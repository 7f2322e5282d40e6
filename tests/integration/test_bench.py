"""The benchmark runs: real processes under real load, whatever the figures."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from app.model.codec import RequestCodec
from bench.contestant import Contestant
from bench.contestants.journal import plain
from bench.contestants.limit import Limit
from bench.entries import bodies
from bench.load import Job, Sample
from bench.rounds import Benchmark, chosen

ROOT = Path(__file__).parents[2]


def test_a_round_measures_the_limit_and_the_journal(tmp_path: Path) -> None:
    everybody: list[Contestant] = [Limit(), plain()]
    names = chosen(everybody, ["limit-100", "journal-1-half", "journal-100-json"])
    with Benchmark(everybody, names, tmp_path) as benchmark:
        measured = benchmark.round(0.2)
    # The half of the peak needs the peak.
    assert list(measured) == ["limit-100", "journal-1", "journal-1-half", "journal-100-json"]
    for metrics in measured.values():
        assert metrics["entries_per_s"] > 0
        assert 0 < metrics["p50_ms"] <= metrics["p99_ms"]
    assert benchmark.absent == {}


@pytest.mark.parametrize("json_format", [False, True])
def test_bodies_are_valid_and_no_request_uuid_comes_twice(json_format: bool) -> None:
    """Or the duplicate path would be measured."""
    codec = RequestCodec(100, 1 << 20)
    made = bodies(3, 100, json=json_format)
    keys = [key for body in made for key in codec.prepare(body, json=json_format).keys]
    assert len(set(keys)) == 300
    (size,) = {len(body) // 100 for body in bodies(1, 100)}
    assert 850 <= size <= 950


def test_a_load_that_fails_says_why_and_ends_the_generator(tmp_path: Path) -> None:
    """Its process ends without the interpreter's tear-down: its status must be right."""
    job = Job(driver="limit", target=str(tmp_path / "limit"), entries=1, sends=5, warm_s=0)
    bad = Job(driver="http", target="http://127.0.0.1:1/entries", sends=1)
    lines = b"\n".join(map(msgspec.json.encode, (job, bad))) + b"\n"
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        timeout=60,
        check=False,
    )
    (answer,) = done.stdout.splitlines()
    assert msgspec.convert(json.loads(answer), Sample).entries == 5
    assert done.returncode == 1
    assert b"ConnectError" in done.stderr
