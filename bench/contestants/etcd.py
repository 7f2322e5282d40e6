"""etcd through its HTTP gateway: one put an entry, its key the `request_uuid`."""

import shutil
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bench.contestant import Row, Server, free_port, loaded, wait_for
from bench.contestants.http import HttpDriver
from bench.entries import encoded_entries
from bench.load import Job

_QUOTA_BYTES: Final = 8 << 30


class EtcdDriver(HttpDriver):
    """Posts puts to `job.target`."""

    def bodies(self, job: Job) -> Iterable[bytes]:
        """JSON, with key and value in base64, as the gateway has it."""
        for uuid, data in encoded_entries(job.sends):
            yield b'{"key":"%b","value":"%b"}' % (b64encode(uuid.bytes), b64encode(data))


class Etcd:
    """One node, over HTTP/1.1: the gateway speaks HTTP/2 with TLS alone."""

    name = "etcd"

    def __init__(self) -> None:
        self._server = Server("etcd")
        self._port = 0

    def missing(self) -> str | None:
        """Debian's package."""
        return None if shutil.which("etcd") else "there is no etcd"

    def rows(self) -> Sequence[Row]:
        """As the journal gets single entries."""
        return [Row("etcd", "etcd, HTTP gateway, 1 put, 64 in flight", loaded(self._job))]

    def launch(self, scratch: Path) -> None:
        """Start the server."""
        self._port, peers = free_port(), f"http://127.0.0.1:{free_port()}"
        clients = f"http://127.0.0.1:{self._port}"
        options = {
            "data-dir": str(scratch / self.name),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
            "quota-backend-bytes": str(_QUOTA_BYTES),
            "log-level": "error",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._server.start(["etcd", *arguments], scratch)

    def ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: self._server.answers_on(self._port), "etcd listens")

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def _job(self) -> Job:
        return Job(
            driver="etcd",
            target=f"http://127.0.0.1:{self._port}/v3/kv/put",
            in_flight=64,
            sends=12_000,
            options={"format": "json", "http": "1"},
        )


DRIVER = EtcdDriver()
