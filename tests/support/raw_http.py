"""HTTP/1.1 and HTTP/2 byte by byte, over real sockets: what no well-behaved client would send."""

import socket
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER_BYTES: Final = 9
MAX_WINDOW: Final = 2**31 - 1


class RawConnection:
    """A connection to a service on loopback, from an address of loopback.

    The peer's own bytes are read when asked for.
    """

    def __init__(self, port: int, timeout_s: float = 10, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send `data`; False when the peer has cut the connection."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            return False
        return True

    def received(self) -> bytes:
        """What is there to be read; nothing once the peer has closed."""
        try:
            return self.socket.recv(1 << 16)
        except ConnectionError:
            return b""

    def is_cut(self) -> bool:
        """Whether the peer has closed the connection, by now; what it has sent is dropped."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        finally:
            self.socket.setblocking(True)
        return True

    def answer(self) -> bytes:
        """All that the peer sends until it closes."""
        return b"".join(iter(self.received, b""))


class RawHttp2(RawConnection):
    """HTTP/2 by hand: frames are given as they are, streams are numbered."""

    def __init__(
        self,
        port: int,
        settings: Mapping[int, int] | None = None,
        *,
        connection_window: int = 0,
        source: str = "127.0.0.1",
    ) -> None:
        super().__init__(port, source=source)
        self._encoder = Encoder()
        self._next_stream = 1
        self._unread = bytearray()
        self.send(PREFACE + SettingsFrame(0, settings=dict(settings or {})).serialize())
        if connection_window:
            self.send(WindowUpdateFrame(0, window_increment=connection_window).serialize())

    def headers(
        self,
        method: str = "POST",
        path: str = "/entries",
        *,
        end: bool = False,
        more: Iterable[tuple[str, str]] = (),
    ) -> tuple[int, bytes]:
        """A HEADERS frame on a new stream, and the stream's number."""
        stream = self._next_stream
        self._next_stream += 2
        frame = HeadersFrame(stream, flags=["END_HEADERS", *(["END_STREAM"] if end else [])])
        frame.data = self._encoder.encode(
            [
                (":method", method),
                (":scheme", "http"),
                (":authority", "127.0.0.1"),
                (":path", path),
                *(name_value for name_value in more),
            ],
            huffman=False,
        )
        return stream, frame.serialize()

    @staticmethod
    def data(stream: int, data: bytes, *, end: bool = False) -> bytes:
        """A DATA frame."""
        return DataFrame(stream, data=data, flags=["END_STREAM"] if end else []).serialize()

    @staticmethod
    def reset(stream: int) -> bytes:
        """A RST_STREAM frame: CANCEL."""
        return RstStreamFrame(stream, error_code=8).serialize()

    def frames(self) -> Iterator[Frame]:
        """The peer's frames, until it closes."""
        while True:
            while len(self._unread) < _FRAME_HEADER_BYTES:
                if not self._read():
                    return
            frame, length = Frame.parse_frame_header(memoryview(self._unread)[:9])
            while len(self._unread) < _FRAME_HEADER_BYTES + length:
                if not self._read():
                    return
            frame.parse_body(memoryview(bytes(self._unread[9 : 9 + length])))
            del self._unread[: 9 + length]
            yield frame

    def is_served(self) -> bool:
        """Whether another request is answered; all before it have begun, then."""
        stream, headers = self.headers("GET", "/healthz", end=True)
        if not self.send(headers):
            return False
        for frame in self.frames():
            if frame.stream_id == stream:
                assert not isinstance(frame, RstStreamFrame)
                if isinstance(frame, DataFrame) and "END_STREAM" in frame.flags:
                    return True
        return False

    def goodbye(self) -> GoAwayFrame | None:
        """The GOAWAY that ends the connection; None when it ends without one."""
        return next((frame for frame in self.frames() if isinstance(frame, GoAwayFrame)), None)

    def _read(self) -> bool:
        data = self.received()
        self._unread += data
        return bool(data)
