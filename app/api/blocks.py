"""Blocks, what they cover and who may sign them, from the commitment store (protocol, section 2).

`after` is a height, and never part of the answer. In ascending order it is the highest one that the
client has already, in descending order the lowest; without it an answer begins at that order's own
end. `next` is the `after` of the next page. It is null where the order has come to its end, which
is final in descending order alone: in ascending order a client goes on from the last block it got.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from app.api.answers import documented, prefers_msgpack
from app.api.block_answers import (
    AuthoritiesAnswer,
    BlockAnswer,
    BlocksAnswer,
    CommandsAnswer,
    block_answer,
    commands_answer,
    delegation_answer,
    each_command_answer,
    hex_text,
)
from app.api.block_source import BlockSource, block_at, blocks_of, newest_block
from app.api.caching import CACHED, not_modified, tagged_answer
from app.api.formats import encode_in_parts
from app.api.large_answers import LargeAnswers
from app.api.problems import HttpProblem
from app.chain.store import StoredBlock
from app.errors import DatabaseUnavailable
from app.model.entry import MAX_INT64, Entry

router: Final = APIRouter()

_MAX_LIMIT: Final = 1000
# So many blocks or commands, without content, are shown at once.
_SMALL: Final = 100
Height = Annotated[int, Path(ge=0, le=MAX_INT64, examples=[0])]


@router.get(
    "/blocks",
    response_model=BlocksAnswer,
    responses=CACHED | documented(422, 503),
    summary="Blocks, in either order, by the page",
)
async def get_blocks(
    request: Request,
    after: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_INT64,
            description="Only blocks behind this height in the order asked for: higher ones in "
            "ascending order, lower ones in descending order. Default: from the first block, or "
            "from the newest.",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 100,
    order: Annotated[Literal["asc", "desc"], Query(description="by height")] = "asc",
) -> Response:
    """A page of blocks. `next` is the `after` of the next page; null where there is none yet.

    A page that newer blocks can't change is immutable.
    """
    descending = order == "desc"
    found = blocks_of(request).store.blocks(after, limit + 1, descending=descending)
    page = found[:limit]
    more = len(found) > limit
    following = {"next": page[-1].header.batch_seq if more else None}
    immutable = _is_final(page, after, more, descending)
    if len(page) <= _SMALL:
        answer = {"blocks": [block_answer(block) for block in page], **following}
        return tagged_answer(request, answer, immutable=immutable)

    async def begin() -> Iterator[bytes]:
        msgpack = prefers_msgpack(request)
        shown = map(block_answer, page)
        return encode_in_parts({"blocks": []}, shown, len(page), following, msgpack=msgpack)

    large: LargeAnswers = request.app.state.large_answers
    return await large.answer(request, begin, immutable=immutable)


@router.get(
    "/blocks/latest",
    response_model=BlockAnswer,
    responses=CACHED | documented(404, 503),
    summary="The newest block",
)
async def get_latest_block(request: Request) -> Response:
    """The block of the newest batch that had a block command; 404 before the first."""
    block = newest_block(blocks_of(request))
    tag = hex_text(block.block_hash)
    return tagged_answer(request, block_answer(block), immutable=False, tag=tag)


@router.get(
    "/blocks/{height}",
    response_model=BlockAnswer,
    responses=CACHED | documented(404, 422, 503),
    summary="A block",
)
async def get_block(request: Request, height: Height) -> Response:
    """A block can be read from the moment on at which its batch is acknowledged."""
    block = block_at(blocks_of(request), height)
    tag = hex_text(block.block_hash)
    return tagged_answer(request, block_answer(block), immutable=True, tag=tag)


@router.get(
    "/blocks/{height}/commands",
    response_model=CommandsAnswer,
    responses=CACHED | documented(404, 422, 503),
    summary="The commands that a block covers",
)
async def get_block_commands(
    request: Request,
    height: Height,
    content: Annotated[
        bool, Query(description="with `command_data` and `events` as journaled")
    ] = False,
) -> Response:
    """The block commands in their order, as the command log has them.

    Their content comes from the write-ahead log while that has it, else from Postgres; 503 when
    neither can give it.
    """
    source = blocks_of(request)
    block = block_at(source, height)
    tag = hex_text(block.block_hash)
    held = not_modified(request, immutable=True, tag=tag)
    if held is not None:
        return held

    async def begin() -> Iterator[bytes]:
        contents = await _content_of(source, block) if content else None
        return encode_in_parts(
            commands_answer(block),
            _each_command(source, block, contents),
            block.header.command_count,
            msgpack=prefers_msgpack(request),
        )

    if not content and block.header.command_count <= _SMALL:
        answer = commands_answer(block)
        answer["commands"] = list(_each_command(source, block, None))
        return tagged_answer(request, answer, immutable=True, tag=tag)
    large: LargeAnswers = request.app.state.large_answers
    return await large.answer(request, begin, immutable=True, tag=tag)


@router.get(
    "/authorities",
    response_model=AuthoritiesAnswer,
    responses=CACHED | documented(503),
    summary="Who may sign blocks",
)
async def get_authorities(request: Request) -> Response:
    """Every delegation of the cold key that a block was signed under, the newest first."""
    delegations = blocks_of(request).store.authorities()
    answer = {"authorities": [delegation_answer(delegation) for delegation in delegations]}
    return tagged_answer(request, answer, immutable=False)


def _is_final(page: list[StoredBlock], after: int | None, more: bool, descending: bool) -> bool:
    """Whether newer blocks change nothing about a page."""
    if descending:
        # The page is full or ends at block 0, and it begins where the client said.
        return after == 0 or (
            after is not None and bool(page) and page[0].header.batch_seq == after - 1
        )
    return more


async def _content_of(source: BlockSource, block: StoredBlock) -> Mapping[int, Entry]:
    """The entries of a block's commands. Raises `HttpProblem` when they can't be had."""
    height = block.header.batch_seq
    try:
        contents = await source.content_of(height)
    except DatabaseUnavailable as error:
        detail = f"the log no longer has the content of block {height}, and Postgres: {error}"
        raise HttpProblem(503, "content_unavailable", detail) from error
    if contents is None:
        raise _no_content(block)
    return contents


def _each_command(
    source: BlockSource, block: StoredBlock, contents: Mapping[int, Entry] | None
) -> Iterator[dict[str, Any]]:
    """The commands as the answer shows them. Raises `HttpProblem` at one without its content."""
    commands = source.store.each_command(block.header.batch_seq)
    try:
        yield from each_command_answer(commands, contents)
    except (KeyError, msgspec.DecodeError) as error:
        raise _no_content(block) from error


def _no_content(block: StoredBlock) -> HttpProblem:
    detail = f"neither the log nor Postgres has the content of block {block.header.batch_seq}"
    return HttpProblem(503, "content_unavailable", detail)
