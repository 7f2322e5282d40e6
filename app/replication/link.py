"""The messages between the worker and the replication process, one a packet of a socket pair.

Data never goes this way: the WAL file is the only channel for it. When one side is gone, the other
reads an end of file.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

# The values of the checkpoint's `replication`.
STREAMING: Final = "streaming"
CATCHING_UP: Final = "catching_up"
DOWN: Final = "down"
STOPPED: Final = "stopped"

_MAX_PACKET_BYTES: Final = 64 * 1024


class Durable(Struct, tag=True, frozen=True):
    """Worker: the log may be read up to this offset."""

    offset: int


class Drain(Struct, tag=True, frozen=True):
    """Worker: replicate what is durable, then end."""


class Progressed(Struct, tag=True, frozen=True, kw_only=True):
    """Replication.

    Postgres has committed up to here. `entries` and `insert_s` are this transaction's.
    """

    wal_offset: int
    last_command_id: int
    last_l2_seq: int | None
    dead_letters: int
    entries: int = 0
    insert_s: float = 0.0


class Status(Struct, tag=True, frozen=True):
    """Replication: how it is doing. `state` is one of those above."""

    state: str
    detail: str = ""


ToReplication = Durable | Drain
ToWorker = Progressed | Status

_encoder: Final = msgspec.msgpack.Encoder()
_to_replication: Final = msgspec.msgpack.Decoder(ToReplication)
_to_worker: Final = msgspec.msgpack.Decoder(ToWorker)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep packets apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class WorkerEnd:
    """The worker's end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    def try_send(self, message: ToReplication) -> bool:
        """Send without waiting; False when the other end is behind with reading, or gone."""
        try:
            self._socket.send(_encoder.encode(message))
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            return False
        return True

    async def receive(self) -> ToWorker | None:
        """The next message; None when the other end is gone."""
        packet = await _receive(self._socket)
        return _to_worker.decode(packet) if packet else None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class ReplicationEnd:
    """The replication process's end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    async def send(self, message: ToWorker) -> None:
        """Send, waiting for room. That the worker is gone is told by `receive` alone."""
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._socket, _encoder.encode(message))

    async def receive(self) -> ToReplication | None:
        """The next message; None when the worker is gone."""
        packet = await _receive(self._socket)
        return _to_replication.decode(packet) if packet else None


async def _receive(end: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(end, _MAX_PACKET_BYTES)
    except ConnectionError:
        return b""
