"""The load over HTTP: pyreqwest, a compiled client, over one HTTP/2 connection or over HTTP/1.1."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.request import ConsumedRequest

from bench.entries import bodies
from bench.load import Job, Prepared

_WINDOW_BYTES: Final = 16 << 20
_FRAME_BYTES: Final = 1 << 20


class HttpDriver:
    """Posts bodies to `job.target`. Options: `format` (msgpack, json), `http` (1, 2), `size`."""

    def bodies(self, job: Job) -> Iterable[bytes]:
        """Bodies with fresh uuids."""
        json, small = job.options.get("format") == "json", job.options.get("size") == "small"
        return bodies(job.sends, job.entries, json=json, small=small)

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """One client for all that is in flight, and the requests for it."""
        kind = "json" if job.options.get("format") == "json" else "msgpack"
        headers = {"content-type": f"application/{kind}"}
        async with http_client(job) as client:
            post = client.post
            requests = [
                post(job.target).headers(headers).body_bytes(body).build()
                for body in self.bodies(job)
            ]

            async def send(request: ConsumedRequest) -> None:
                response = await request.send()
                answer = await response.bytes()
                if response.status != 200:
                    text = bytes(answer)[:500]
                    raise RuntimeError(f"{job.target} answered {response.status}: {text!r}")

            yield Prepared(iter(requests), [send] * job.in_flight)


def http_client(job: Job) -> Client:
    """A client for the version of HTTP that the job asks for."""
    builder = ClientBuilder().no_proxy()
    if job.options.get("http") == "1":
        return builder.http1_only().pool_max_idle_per_host(job.in_flight).build()
    return (
        builder.http2_prior_knowledge()
        .http2_initial_stream_window_size(_WINDOW_BYTES)
        .http2_initial_connection_window_size(_WINDOW_BYTES)
        .http2_max_frame_size(_FRAME_BYTES)
        .build()
    )


DRIVER = HttpDriver()
