"""Bodies that are large, or that gzip makes large: unpacked and weighed before they are decoded.

That can take tenths of a second of a body, and checking what was decoded as well. It happens on a
thread of its own, so that the loop has time for others, and with one body at a time, so that one
alone is there in its full size.
"""

import asyncio
import zlib
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from app.api.problems import HttpProblem, body_too_large
from app.chain.content import ALL_COMMANDS
from app.errors import Unavailable
from app.model.codec import PreparedRequest, RequestCodec
from app.model.weight import check_weight, is_light, light_bytes
from app.service.interpreter import give_free_memory_back

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# Members may be empty: their number must have a limit of its own. Block compressors make one of 64
# KiB.
_MAX_MEMBERS: Final = 1000
_PIECE_BYTES: Final = 64 << 10
# What is no larger than this part of MAX_BODY_BYTES leaves too little in the heap as it grows.
_VERY_LARGE: Final = 4

Body = bytes | bytearray


class Scales:
    """Weighs and prepares request bodies, of which at most `max_waiting_bytes` wait for it.

    A gzip body counts as the most that may be in it.
    """

    def __init__(
        self,
        codec: RequestCodec,
        max_body_bytes: int,
        max_entries: int,
        max_waiting_bytes: int,
        block_commands: AbstractSet[str],
    ) -> None:
        self._codec = codec
        self._max_body_bytes = max_body_bytes
        self._max_entries = max_entries
        self._max_waiting_bytes = max_waiting_bytes
        names = {"command_type"} if ALL_COMMANDS in block_commands else block_commands
        self._block_words = [name.encode() for name in names]
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
        if gzip:
            body = self._unpack(body)
        check_weight(
            body,
            json=json,
            max_body_bytes=self._max_body_bytes,
            max_entries=self._max_entries,
            block_words=self._block_words,
        )
        return self._codec.prepare(body, json=json)

    def _unpack(self, body: Body) -> bytearray:
        """What a gzip body holds, and nothing of the body any more: a caller may hold it longer."""
        plain = inflate(body, self._max_body_bytes)
        if plain is None:
            raise body_too_large(self._max_body_bytes)
        if isinstance(body, bytearray):
            body.clear()
        if len(plain) > self._max_body_bytes // _VERY_LARGE:
            give_free_memory_back()  # of what both have left in the heap as they grew
        return plain


def inflate(body: Body, limit_bytes: int) -> bytearray | None:
    """What a gzip body holds in all of its members (RFC 1952); None when more than `limit_bytes`.

    Raises a 400 for what is not gzip from its first byte to its last.
    """
    view, plain = memoryview(body), bytearray()
    at, members = 0, 0
    try:
        while members == 0 or at < len(view):
            if members == _MAX_MEMBERS:
                raise _not_gzip(f"the gzip body has more than {_MAX_MEMBERS} members")
            at = _inflate_member(view, at, plain, limit_bytes)
            members += 1
            if len(plain) > limit_bytes:
                return None
    except zlib.error as error:
        raise _not_gzip(f"the body is not valid gzip: {error}") from None
    return plain


def _inflate_member(view: memoryview, at: int, plain: bytearray, limit_bytes: int) -> int:
    """Append what the member at `at` holds to `plain`, or what exceeds the limit by one byte.

    Returns where the member ends. It is taken in pieces: what zlib has not used is copied.
    """
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    while not inflater.eof:
        taken: bytes | memoryview = inflater.unconsumed_tail
        if not taken:
            taken = view[at : at + _PIECE_BYTES]
            at += len(taken)
        piece = inflater.decompress(taken, min(_PIECE_BYTES, limit_bytes + 1 - len(plain)))
        if not (taken or piece or inflater.eof):
            raise _not_gzip("the body is not complete gzip")
        plain += piece
        if len(plain) > limit_bytes:
            break
    return at - len(inflater.unused_data)


def _not_gzip(message: str) -> HttpProblem:
    return HttpProblem(400, "undecodable_body", message)
