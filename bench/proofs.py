"""How long an inclusion proof takes in a log of a million commands.

The service journals them, 100 a block, and is then asked for proofs of commands drawn at random,
one after the other over one connection: the time of a whole request, and so more than the server's
part of it. The exit status is 1 when the median is 5 ms or more.

Needs no Postgres. `python -m bench.proofs [COMMANDS]`; a minute or two.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Final
from uuid import UUID, uuid4

import httpx
import msgspec

from tests.support.service import Service

COMMANDS: Final = 1_000_000
PROOFS: Final = 1000
MOST_MS: Final = 5.0
_BLOCK: Final = 100
_CONNECTIONS: Final = 4
_NO_DATABASE: Final = "postgresql://127.0.0.1:9/none"
_HEADERS: Final = {"content-type": "application/msgpack"}


def _body(request_uuids: list[UUID]) -> bytes:
    entries = [
        {
            "request_uuid": request_uuid.bytes,
            "received_ts_ms": 1_703_462_400_000,
            "command_type": "CreateOrder",
            "command_data": b"\1",
        }
        for request_uuid in request_uuids
    ]
    return msgspec.msgpack.encode({"entries": entries})


async def _fill(client: httpx.AsyncClient, batches: Iterator[list[UUID]]) -> None:
    for batch in batches:
        response = await client.post("/entries", content=_body(batch), headers=_HEADERS)
        response.raise_for_status()


async def measure(url: str, commands: int) -> list[float]:
    """Journal the commands; returns the milliseconds of each proof that was then asked for."""
    chance = random.Random(0)
    drawn: list[UUID] = []

    def batches() -> Iterator[list[UUID]]:
        for _ in range(commands // _BLOCK):
            batch = [uuid4() for _ in range(_BLOCK)]
            drawn.append(chance.choice(batch))
            yield batch

    taken: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        left = batches()
        async with asyncio.TaskGroup() as group:
            for _ in range(_CONNECTIONS):
                group.create_task(_fill(client, left))
        for request_uuid in chance.choices(drawn, k=PROOFS):
            started = time.perf_counter()
            response = await client.get(
                "/proofs/inclusion", params={"request_uuid": str(request_uuid)}
            )
            taken.append(1000 * (time.perf_counter() - started))
            response.raise_for_status()
    return taken


def main() -> int:
    """Measure and tell; returns the exit status."""
    commands = int(sys.argv[1]) if len(sys.argv) > 1 else COMMANDS
    with tempfile.TemporaryDirectory(prefix="bench-proofs-") as folder:
        data_dir = Path(folder) / "data"
        with Service(data_dir, _NO_DATABASE, ALLOW_NEW_WAL="true", BLOCK_COMMANDS="*") as service:
            service.start()
            taken = asyncio.run(measure(service.url, commands))
    cuts = quantiles(taken, n=100)
    line = f"inclusion proof in {commands} commands: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms"
    sys.stdout.write(line + "\n")
    return 0 if cuts[49] < MOST_MS else 1


if __name__ == "__main__":
    sys.exit(main())
