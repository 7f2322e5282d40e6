"""What honest clients notice of an attack: the 99th percentile of their acknowledgements.

One service, one honest client over HTTP/2 at a fixed rate, and an attacker in a process of its own
that is there in every other phase: quiet, attacked, quiet, and so on, so that what else the machine
does meets both. Each phase's first moments are not counted. The exit status is 1 when the
percentile under attack is twice the quiet one or more, over all phases of one attack.

Needs no Postgres. `python -m bench.attacks [ATTACK …]`; a minute for each.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Final

import httpx

from bench.attackers import ATTACKS, BODY, Target, large_blocks
from tests.support.http_entries import msgpack_entry, packed
from tests.support.service import Service

PHASES: Final = 4
PHASE_S: Final = 15
WARM_S: Final = 0.5
RATE: Final = 100
ENTRIES: Final = 10
MOST: Final = 2.0
# The first block of a service that is attacked by its blocks.
BLOCK_ENTRIES: Final = 10_000
BLOCK_ENTRY_BYTES: Final = 1300
WITH_BLOCKS: Final = frozenset({large_blocks.__name__})
NO_DATABASE: Final = "postgresql://127.0.0.1:9/none"


def attack_for_ever(name: str, target: Target) -> None:
    """The attacker's process. A connection that the service has ended is opened again.

    It leaves the processors to the others: a real one would not run on the machine it attacks.
    """
    os.nice(19)
    while True:
        with suppress(OSError):
            ATTACKS[name](target)


async def phase(client: httpx.AsyncClient) -> list[float]:
    """Latencies in seconds of one phase, each from when the request was due."""
    latencies: list[float] = []
    started = time.perf_counter()

    async def send(due: float) -> None:
        body = packed(*(msgpack_entry() for _ in range(ENTRIES)))
        response = await client.post("/entries", content=body, headers=dict(BODY))
        if response.status_code != 200:
            raise RuntimeError(f"an honest client got {response.status_code}: {response.text}")
        if due - started > WARM_S:
            latencies.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        for number in range(int(PHASE_S * RATE)):
            due = started + number / RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(send(due))
    return latencies


async def measure(service: Service, name: str, sources: Iterator[str]) -> bool:
    """All phases of one attack; whether what honest clients noticed is within the limit."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[bool, list[float]] = {False: [], True: []}
    limits = httpx.Limits(max_connections=1)
    connections = 0
    async with httpx.AsyncClient(
        base_url=service.url, http1=False, http2=True, timeout=30, trust_env=False, limits=limits
    ) as client:
        for _, attacked in zip(range(PHASES), cycle((False, True)), strict=False):
            target = Target(service.port, next(sources), spawn.Value("L", 0))
            attacker = spawn.Process(target=attack_for_ever, args=(name, target), daemon=True)
            if attacked:
                attacker.start()
            try:
                found[attacked] += await phase(client)
                connections += target.connections.value
                if attacked and not (attacker.is_alive() and target.connections.value):
                    raise RuntimeError(f"the attacker of {name} has ended, or never got in")
            finally:
                if attacked:
                    attacker.kill()
                    attacker.join()
    quiet, attacked_p99 = (quantiles(found[each], n=100)[98] * 1000 for each in (False, True))
    ratio = attacked_p99 / quiet
    longest = max(found[True]) * 1000
    line = (
        f"{name:20} {quiet:8.2f} ms quiet {attacked_p99:8.2f} ms attacked {ratio:6.2f} times"
        f" {longest:8.2f} ms at most, by {connections} connections"
    )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return ratio < MOST


def attacked(names: list[str], sources: Iterator[str], *, with_blocks: bool) -> list[bool]:
    """Attack one service in each of these ways."""
    if not names:
        return []
    options = {"ALLOW_NEW_WAL": "true", "FLOOD_BAN_S": os.environ.get("JOURNAL_FLOOD_BAN_S", "60")}
    if with_blocks:
        options["BLOCK_COMMANDS"] = "*"
    with (
        tempfile.TemporaryDirectory(prefix="bench-attacks-") as folder,
        Service(Path(folder) / "data", NO_DATABASE, **options) as service,
    ):
        service.start()
        if with_blocks:
            post_block(service)
        return [asyncio.run(measure(service, name, sources)) for name in names]


def post_block(service: Service) -> None:
    """A request that becomes a large block."""
    data = b"\x01" * BLOCK_ENTRY_BYTES
    entries = (msgpack_entry(command_type="Any", command_data=data) for _ in range(BLOCK_ENTRIES))
    url = f"{service.url}/entries"
    httpx.post(url, content=packed(*entries), headers=dict(BODY), timeout=60).raise_for_status()


def main() -> int:
    """Measure the attacks that are named, or all."""
    names = sys.argv[1:] or list(ATTACKS)
    # The honest client's is 127.0.0.1.
    sources = (f"127.{high}.1.1" for high in range(1, 255))
    results = []
    for with_blocks in (False, True):
        chosen = [name for name in names if (name in WITH_BLOCKS) == with_blocks]
        results += attacked(chosen, sources, with_blocks=with_blocks)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
