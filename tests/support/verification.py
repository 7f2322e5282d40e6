"""A service that signs, its blocks as served, and `journal verify` of whatever holds them."""

import json
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner

from app.chain.authority import address_of
from app.cli import main
from tests.support.service import Service
from tests.support.signed_chain import COLD_KEY

_PAGE = 1000


def write_cold_key(directory: Path) -> Path:
    """A file for COLD_KEY_FILE with the key that `verification` expects."""
    path = directory / "cold.hex"
    path.touch(mode=0o600)
    path.write_text(COLD_KEY.to_hex())
    return path


def verification(source: object, *options: object) -> dict[str, Any]:
    """What `journal verify SOURCE` reports, with the right cold address."""
    cold = f"0x{address_of(COLD_KEY.public_key).hex()}"
    arguments = ["verify", source, "--cold-address", cold, "--json", *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["status"] == result.exit_code, result.output
    return found


def assert_verified_in_all_ways(service: Service, database_url: str, commands: int) -> None:
    """The service, its log and its database verify from block 0 on, and hold the same chain."""
    with service.client() as client:
        newest = served_blocks(client)[-1]
    for source in (service.url, service.data_dir, database_url):
        found = verification(source)
        assert found["status"] == 0, (source, found)
        assert found["checked"]["blocks"] == newest["batch_seq"] + 1, source
        assert found["checked"]["commands"] == commands, source
        assert found["block_hash"] == newest["block_hash"], source


def served_blocks(client: httpx.Client) -> list[dict[str, Any]]:
    """All blocks, from height 0 on."""
    blocks: list[dict[str, Any]] = []
    after: dict[str, int] = {}
    while True:
        page = client.get("/blocks", params={"limit": _PAGE, **after})
        assert page.status_code == 200, page.text
        blocks += page.json()["blocks"]
        if page.json()["next"] is None:
            assert [block["batch_seq"] for block in blocks] == list(range(len(blocks)))
            return blocks
        after = {"after": page.json()["next"]}
