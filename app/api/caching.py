"""Answers that may be kept: strong entity tags, how long they hold, and 304 (RFC 9110, RFC 9111).

A tag stands for the exact bytes of an answer, so each format has its own.
"""

from collections.abc import Iterable
from hashlib import blake2b
from re import compile as compile_pattern
from typing import Any, Final

from fastapi import Request, Response

from app.api.answers import prefers_msgpack
from app.api.formats import encode

# Not `public`: a shared cache must not keep what was answered to a token (RFC 9111, 3.5).
IMMUTABLE: Final = "max-age=31536000, immutable"
REVALIDATED: Final = "no-cache"
CACHED_HEADERS: Final[dict[str, Any]] = {
    "ETag": {"description": "Strong; each format has its own", "schema": {"type": "string"}},
    "Cache-Control": {
        "description": f"`{IMMUTABLE}` for what never changes, else `{REVALIDATED}`",
        "schema": {"type": "string"},
    },
}
CACHED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"headers": CACHED_HEADERS},
    304: {"description": "The client's copy, as `If-None-Match` names it, is still right"},
}
_TAG_BYTES: Final = 16
_TAGS: Final = compile_pattern(r'"[^"]*"')


def tagged_answer(
    request: Request, payload: Any, *, immutable: bool, tag: str | None = None
) -> Response:
    """Encode a payload as the client prefers, or say that it has it: 304.

    `tag` names what the payload says; without one the encoded bytes do.
    """
    msgpack = prefers_msgpack(request)
    body, content_type = encode(payload, msgpack=msgpack)
    if tag is None:
        tag = tag_of((body,))
    headers = cache_headers(tag, msgpack=msgpack, immutable=immutable)
    if is_held(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=content_type)


def not_modified(request: Request, *, immutable: bool, tag: str) -> Response | None:
    """The 304 of a client that has what `tag` names, before any work is done for it."""
    headers = cache_headers(tag, msgpack=prefers_msgpack(request), immutable=immutable)
    return Response(status_code=304, headers=headers) if is_held(request, headers["etag"]) else None


def tag_of(parts: Iterable[bytes]) -> str:
    """What names an encoding."""
    digest = blake2b(digest_size=_TAG_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def cache_headers(tag: str, *, msgpack: bool, immutable: bool) -> dict[str, str]:
    """The header fields of an answer, and of its 304."""
    return {
        "etag": f'"{tag}-msgpack"' if msgpack else f'"{tag}"',
        "cache-control": IMMUTABLE if immutable else REVALIDATED,
        "vary": "Accept",
    }


def is_held(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names the tag; compared weakly, as RFC 9110, 13.1.2, has it."""
    held = ",".join(request.headers.getlist("if-none-match"))
    return held.strip() == "*" or etag in _TAGS.findall(held)
