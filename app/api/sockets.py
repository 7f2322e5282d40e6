"""The server's TCP sockets in this process, by their descriptors, which stay the server's own.

None more is taken for it where none is left: just then some connections have to be cut off.
"""

import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

Peer = tuple[str, int]

# struct tcp_info (linux/tcp.h): tcpi_bytes_acked, tcpi_bytes_received.
_TRAFFIC: Final = struct.Struct("@QQ")
_TRAFFIC_AT: Final = 120
_TCP_INFO_BYTES: Final = 256
# asm-generic/socket.h; struct sock_fprog (linux/filter.h).
_SO_ATTACH_FILTER: Final = 26
_PROGRAM: Final = struct.Struct("@HP")
_INSTRUCTION_BYTES: Final = 8
# At a time: for TCP the kernel copies nothing of it (tcp(7), MSG_TRUNC).
_DROPPED_BYTES: Final = 1 << 20
_INT: Final = struct.Struct("@i")
_FAMILIES: Final = {socket.AF_INET, socket.AF_INET6}


class Traffic(NamedTuple):
    """What went over a connection, in bytes: what the peer's machine has, what the server read."""

    taken_bytes: int
    read_bytes: int


class _Connected(NamedTuple):
    inode: int
    peer: Peer
    port: int


class Accepted:
    """The accepted connections of this process; each socket is looked at once, while it is open."""

    def __init__(self) -> None:
        self._known: dict[int, _Connected] = {}

    def by_peer(self) -> dict[Peer, int]:
        """The descriptors of those that are open."""
        found: dict[int, _Connected] = {}
        listening: set[int] = set()
        for descriptor, inode in _open_sockets():
            known = self._known.get(descriptor)
            if known is not None and known.inode == inode:
                found[descriptor] = known
                continue
            with suppress(OSError), _borrowed(descriptor) as each:
                if _is_tcp(each):
                    port: int = each.getsockname()[1]
                    if _listens(each):
                        listening.add(port)
                    else:
                        host, peer_port = each.getpeername()[:2]
                        found[descriptor] = _Connected(inode, (host, peer_port), port)
        self._known = found
        return {each.peer: fd for fd, each in found.items() if each.port in listening}


def filter_attempts(program: bytes) -> None:
    """Have a program of classic BPF say which attempts to connect the kernel drops.

    Raises `OSError`.
    """
    held = ctypes.create_string_buffer(program, len(program))
    option = _PROGRAM.pack(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(held))
    for descriptor in _listening():
        with _borrowed(descriptor) as listener:
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def shut_down(descriptor: int, peer: Peer) -> None:
    """Cut a connection off, where it is still the one of this descriptor.

    What came and waits to be read is dropped: the server would go on to work on it.
    """
    with suppress(OSError), _borrowed(descriptor) as borrowed, ExitStack() as stack:
        connection = borrowed
        # The server may close it meanwhile, and get the descriptor for another.
        with suppress(OSError):
            connection = stack.enter_context(borrowed.dup())
        if connection.getpeername()[:2] == peer:
            connection.shutdown(socket.SHUT_RDWR)
            while connection.recv(_DROPPED_BYTES, socket.MSG_TRUNC | socket.MSG_DONTWAIT):
                pass


def traffic(descriptor: int) -> Traffic | None:
    """How much went over a connection so far; None where the system does not tell."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (unread_bytes,) = _INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_INT.size)))
    except OSError:
        return None
    if len(info) < _TRAFFIC_AT + _TRAFFIC.size:
        return None
    acked_bytes, received_bytes = _TRAFFIC.unpack_from(info, _TRAFFIC_AT)
    return Traffic(acked_bytes, received_bytes - unread_bytes)


def _listening() -> list[int]:
    found = []
    for descriptor, _ in _open_sockets():
        with suppress(OSError), _borrowed(descriptor) as each:
            if _is_tcp(each) and _listens(each):
                found.append(descriptor)
    return found


def _open_sockets() -> Iterator[tuple[int, int]]:
    """The sockets of this process, of any kind: descriptors, and their inodes."""
    for descriptor in _descriptors():
        with suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                yield descriptor, status.st_ino


def _is_tcp(each: socket.socket) -> bool:
    return each.family in _FAMILIES and each.type == socket.SOCK_STREAM


def _listens(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _descriptors() -> Iterable[int]:
    """Those of this process; where none is left to list them with, all that there may be."""
    try:
        return map(int, os.listdir("/proc/self/fd"))  # noqa: PTH208 - often, and by far sooner
    except OSError:
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that the server owns, and closes when it likes."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()
