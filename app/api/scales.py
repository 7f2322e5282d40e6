"""Bodies that are large, or that gzip makes large: unpacked and weighed before they are decoded.

That can take tenths of a second of a body, and checking what was decoded as well. It happens on a
thread of its own, so that the loop has time for others, and with one body at a time, so that one
alone is there in its full size.
"""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from app.api.problems import HttpProblem, body_too_large
from app.errors import Unavailable
from app.model.codec import PreparedRequest, RequestCodec
from app.model.weight import check_weight, is_light, light_bytes

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS

Body = bytes | bytearray


class Scales:
    """Weighs and prepares request bodies, of which at most `max_waiting_bytes` wait for it.

    A gzip body counts as the most that may be in it.
    """

    def __init__(
        self, codec: RequestCodec, max_body_bytes: int, max_entries: int, max_waiting_bytes: int
    ) -> None:
        self._codec = codec
        self._max_body_bytes = max_body_bytes
        self._max_entries = max_entries
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "weighing")

    async def prepare(self, body: Body, *, json: bool, gzip: bool) -> PreparedRequest:
        """Decode and check a body, if it is not too heavy.

        Raises `Unavailable` when too much waits, a 400 or 413 for what gzip holds, and what
        `check_weight` and the codec do.
        """
        plain = inflate(body, light_bytes(self._max_body_bytes)) if gzip else body
        if plain is not None and is_light(plain, self._max_body_bytes):
            return self._codec.prepare(plain, json=json)
        size_bytes = self._max_body_bytes if gzip else len(body)
        if self._waiting_bytes and self._waiting_bytes + size_bytes > self._max_waiting_bytes:
            raise Unavailable("too many large bodies wait to be looked at")
        self._waiting_bytes += size_bytes
        try:
            async with self._turn:
                prepare = partial(self._prepare, body, json=json, gzip=gzip)
                return await asyncio.get_running_loop().run_in_executor(self._thread, prepare)
        finally:
            self._waiting_bytes -= size_bytes

    def _prepare(self, body: Body, *, json: bool, gzip: bool) -> PreparedRequest:
        plain = inflate(body, self._max_body_bytes) if gzip else body
        if plain is None:
            raise body_too_large(self._max_body_bytes)
        check_weight(
            plain, json=json, max_body_bytes=self._max_body_bytes, max_entries=self._max_entries
        )
        return self._codec.prepare(plain, json=json)


def inflate(body: Body, limit_bytes: int) -> bytes | None:
    """What a gzip body holds; None where that is more than `limit_bytes`.

    Raises a 400 for what is not one whole gzip stream.
    """
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflater.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise HttpProblem(400, "undecodable_body", f"the body is not valid gzip: {error}") from None
    if len(plain) > limit_bytes:
        return None
    if not inflater.eof or inflater.unused_data:
        raise HttpProblem(400, "undecodable_body", "the body is not one complete gzip stream")
    return plain
