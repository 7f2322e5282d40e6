"""Kafka with `flush.messages=1`: every append is synced before it is acknowledged.

One node in KRaft mode, from the jars that bench/setup.sh gets. The client gathers what is in flight
into batches, as it always does, and each batch is one append.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.contestant import SERVERS, Row, Server, free_port, loaded, wait_for
from bench.entries import encoded_entries
from bench.load import Job, Prepared

_JARS: Final = SERVERS / "kafka"
_TOPIC: Final = "journal"
_CLUSTER: Final = "MkU3OEVBNTcwNTJENDM2Qk"
_PROPERTIES: Final = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={directory}
log.flush.interval.messages=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""


class KafkaDriver:
    """Sends one message a send to the broker `job.target`."""

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """The producer, and the messages."""
        from aiokafka import AIOKafkaProducer  # noqa: PLC0415 - of the benchmark's environment

        producer = AIOKafkaProducer(bootstrap_servers=job.target, acks="all")
        await producer.start()
        try:

            async def send(message: tuple[bytes, bytes]) -> None:
                await producer.send_and_wait(_TOPIC, message[1], key=message[0])

            messages = [(uuid.bytes, data) for uuid, data in encoded_entries(job.sends)]
            yield Prepared(iter(messages), [send] * job.in_flight)
        finally:
            await producer.stop()


class Kafka:
    """One node."""

    name = "kafka"

    def __init__(self) -> None:
        self._server = Server("kafka")
        self._port = 0

    def missing(self) -> str | None:
        """Java, its jars, and the client."""
        if not shutil.which("java"):
            return "there is no Java"
        if not _JARS.is_dir():
            return "its jars are not here"
        return None if importlib.util.find_spec("aiokafka") else "aiokafka is not installed"

    def rows(self) -> Sequence[Row]:
        """As the journal gets single entries."""
        return [Row("kafka", "Kafka, flush.messages=1, 64 in flight", loaded(self._job))]

    def launch(self, scratch: Path) -> None:
        """Format the storage, start the server."""
        self._port = free_port()
        file = scratch / "kafka.properties"
        file.write_text(
            _PROPERTIES.format(
                port=self._port, controller=free_port(), directory=scratch / self.name
            )
        )
        java: list[str | Path] = ["java", "-cp", f"{_JARS}/*", "-Xmx1g"]
        format_storage = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", file]
        subprocess.run(format_storage, check=True, capture_output=True)
        self._server.start([*java, "kafka.Kafka", file], scratch)

    def ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: self._server.answers_on(self._port), "Kafka listens")

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def _job(self) -> Job:
        target = f"127.0.0.1:{self._port}"
        return Job(driver="kafka", target=target, in_flight=64, sends=20_000)


DRIVER = KafkaDriver()
