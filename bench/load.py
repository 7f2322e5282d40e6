"""A load generator of its own process.

Bodies made beforehand, sent over HTTP/2 with many in flight.

`python bench/load.py URL REQUESTS ENTRIES IN_FLIGHT` prints one JSON object: entries and requests a
second, p50 and p99 of the acknowledgement in ms.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from time import perf_counter

from entries import body
from pyreqwest.client import Client, ClientBuilder

_HEADERS = {"content-type": "application/msgpack"}


async def send_all(
    client: Client, url: str, bodies: Iterator[bytes], latencies: list[float]
) -> None:
    """Send the bodies that are left, one after the other."""
    for data in bodies:
        started = perf_counter()
        request = client.post(f"{url}/entries").headers(_HEADERS).body_bytes(data).build()
        response = await request.send()
        await response.bytes()
        if response.status != 200:
            raise SystemExit(f"status {response.status}")
        latencies.append(perf_counter() - started)


async def main(url: str, requests: int, entries: int, in_flight: int) -> dict[str, float]:
    """Send `requests` bodies of `entries` entries, `in_flight` at a time."""
    prepared = [body(entries) for _ in range(requests)]
    latencies: list[float] = []
    async with ClientBuilder().http2_prior_knowledge().build() as client:
        bodies = iter(prepared)
        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(send_all(client, url, bodies, latencies))
        elapsed = perf_counter() - started
    latencies.sort()
    return {
        "entries_per_s": requests * entries / elapsed,
        "requests_per_s": requests / elapsed,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
    }


if __name__ == "__main__":
    url, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(main(url, *map(int, numbers)))))
