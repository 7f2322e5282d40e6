"""The server's TCP sockets in this process, by their descriptors, which stay the server's own.

None more is taken for it where none is left: just then some connections have to be cut off.
"""

import ctypes
import os
import resource
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

Peer = tuple[str, int]

# struct tcp_info (linux/tcp.h): tcpi_bytes_acked.
_ACKED: Final = struct.Struct("@Q")
_ACKED_AT: Final = 120
_TCP_INFO_BYTES: Final = 256
# asm-generic/socket.h; struct sock_fprog (linux/filter.h).
_SO_ATTACH_FILTER: Final = 26
_PROGRAM: Final = struct.Struct("@HP")
_INSTRUCTION_BYTES: Final = 8


def accepted() -> dict[Peer, int]:
    """The descriptors of accepted connections."""
    found: list[tuple[Peer, int, int]] = []
    listening: set[int] = set()
    for descriptor, connection in _tcp_sockets():
        with suppress(OSError):
            port: int = connection.getsockname()[1]
            if _listens(connection):
                listening.add(port)
            else:
                host, peer_port = connection.getpeername()[:2]
                found.append(((host, peer_port), port, descriptor))
    return {peer: descriptor for peer, port, descriptor in found if port in listening}


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
    """Cut a connection off, where it is still the one of this descriptor."""
    with suppress(OSError), _borrowed(descriptor) as borrowed, ExitStack() as stack:
        connection = borrowed
        # The server may close it meanwhile, and get the descriptor for another.
        with suppress(OSError):
            connection = stack.enter_context(borrowed.dup())
        if connection.getpeername()[:2] == peer:
            connection.shutdown(socket.SHUT_RDWR)


def taken_bytes(descriptor: int) -> int | None:
    """How much of what was sent the peer's machine has; None where the system does not tell."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _ACKED_AT + _ACKED.size:
        return None
    acked: int = _ACKED.unpack_from(info, _ACKED_AT)[0]
    return acked


def _tcp_sockets() -> Iterator[tuple[int, socket.socket]]:
    """All of this process, each for as long as it is looked at."""
    families = {socket.AF_INET, socket.AF_INET6}
    for descriptor in _descriptors():
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with _borrowed(descriptor) as each:
                if each.family in families and each.type == socket.SOCK_STREAM:
                    yield descriptor, each


def _listening() -> list[int]:
    found = []
    for descriptor, each in _tcp_sockets():
        with suppress(OSError):
            if _listens(each):
                found.append(descriptor)
    return found


def _listens(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _descriptors() -> Iterable[int]:
    """Those of this process; where none is left to list them with, all that there may be."""
    try:
        return [int(path.name) for path in Path("/proc/self/fd").iterdir()]
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
