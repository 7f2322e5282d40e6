"""One journal, verified in all three ways while its service runs."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.chain.authority import address_of
from app.cli import main
from tests.integration.conftest import MakeService
from tests.support.signed_chain import COLD_KEY


def entry(number: int) -> dict[str, Any]:
    return {
        "request_uuid": str(uuid4()),
        "received_ts_ms": 1_700_000_000_000 + number,
        "command_type": "TickSnapshot" if number % 3 else "NewOrder",
        "command_data": "AYA=",
        "events": [
            {"event_topic": "ticks", "event_data": "AQI=", "event_type": "Tick"}
            for _ in range(number % 4)
        ],
    }


def report(source: object, *options: object) -> dict[str, Any]:
    cold = f"0x{address_of(COLD_KEY.public_key).hex()}"
    arguments = ["verify", source, "--cold-address", cold, "--json", *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_running_service_its_log_and_its_database_verify_and_agree(
    make_service: MakeService, database_url: str, tmp_path: Path
) -> None:
    key_file = tmp_path / "cold.hex"
    key_file.touch(mode=0o600)
    key_file.write_text(COLD_KEY.to_hex())
    service = make_service(COLD_KEY_FILE=key_file, BLOCK_COMMANDS="*", ALLOW_NEW_WAL="true").start()
    with service.client() as client:
        for start in range(0, 60, 6):
            entries = [entry(number) for number in range(start, start + 6)]
            client.post("/entries", json={"entries": entries}).raise_for_status()
        client.post("/flush").raise_for_status()
    reports = [report(source) for source in (service.url, service.data_dir, database_url)]
    assert [found["status"] for found in reports] == [0, 0, 0], reports
    for found in reports:
        assert found["checked"]["commands"] == 60
        assert found["checked"]["events"] == sum(number % 4 for number in range(60))
        assert found["warnings"] == []
        assert (found["height"], found["block_hash"]) == (
            reports[0]["height"],
            reports[0]["block_hash"],
        )
    assert reports[0]["proofs"] > 0
    service.terminate()
    assert report(service.url)["status"] == 2
    assert report(service.data_dir)["block_hash"] == reports[0]["block_hash"]
