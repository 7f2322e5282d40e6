"""Proofs over the command log (RFC 9162, sections 2.1.3 and 2.1.4; chain page).

A proof shows something about two roots of which the client has signed headers: sizes and roots are
those of the blocks it names, `first_seq + command_count` and `command_root`.
"""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.answers import documented
from app.api.block_answers import BLOCK_EXAMPLE, COMMAND_EXAMPLE, Hash, hex_text
from app.api.block_source import (
    NOT_STORED,
    BlockSource,
    block_at,
    blocks_of,
    missing,
    newest_block,
)
from app.api.caching import CACHED, tagged_answer
from app.api.problems import HttpProblem
from app.chain.merkle import consistency_proof, inclusion_proof
from app.chain.store import StoredBlock
from app.errors import DatabaseUnavailable
from app.model.entry import MAX_INT64

router: Final = APIRouter(prefix="/proofs")

_SECOND_ROOT: Final = "0x1e274c2cc1d479bb78c0d07f38b24374586c6ba23d61eae9565a2d9f5f47cb7b"
_INCLUSION_EXAMPLE: Final[dict[str, Any]] = {
    "request_uuid": COMMAND_EXAMPLE["request_uuid"],
    "command_identity_hash": COMMAND_EXAMPLE["command_identity_hash"],
    "leaf_index": 0,
    "tree_size": 1,
    "path": [],
    "root": BLOCK_EXAMPLE["command_root"],
    "height": 0,
}
_CONSISTENCY_EXAMPLE: Final[dict[str, Any]] = {
    "from": 0,
    "to": 1,
    "first_size": 1,
    "second_size": 3,
    "first_root": BLOCK_EXAMPLE["command_root"],
    "second_root": _SECOND_ROOT,
    "path": [
        "0xf1f45f7cffd7b1bee76c4461f33893c7428ef14ced51dc83d1c65834eb73367a",
        "0x15ea12401012583a3331c54be1e6bf0fa499b93f585891b753b1b9d38f085770",
    ],
}


class InclusionAnswer(BaseModel):
    """`path` leads from the leaf, `command_identity_hash`, to the `root` of block `height`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_INCLUSION_EXAMPLE]})

    request_uuid: UUID
    command_identity_hash: Hash
    leaf_index: int
    tree_size: Annotated[int, Field(description="leaves of the command log as of the block")]
    path: Annotated[list[Hash], Field(description="from the leaf upwards")]
    root: Annotated[Hash, Field(description="the block's `command_root`")]
    height: int


class ConsistencyAnswer(BaseModel):
    """`path` shows that the command log of block `to` begins with that of block `from`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CONSISTENCY_EXAMPLE]})

    first: Annotated[int, Field(alias="from", description="a height")]
    second: Annotated[int, Field(alias="to", description="a height")]
    first_size: int
    second_size: int
    first_root: Hash
    second_root: Hash
    path: list[Hash]


@router.get(
    "/inclusion",
    response_model=InclusionAnswer,
    responses=CACHED | documented(404, 422, 503),
    summary="That a command is in the journal",
)
async def get_inclusion_proof(
    request: Request,
    request_uuid: Annotated[UUID, Query(examples=[COMMAND_EXAMPLE["request_uuid"]])],
    height: Annotated[
        int | None,
        Query(ge=0, le=MAX_INT64, description="as of this block (default: the newest)"),
    ] = None,
) -> Response:
    """Proves that the command log as of a block holds a command: its first leaf, if it has more."""
    source = blocks_of(request)
    store = source.store
    # Before the newest block is read: it holds every leaf that was found.
    found = store.leaf_of(request_uuid.bytes)
    block = newest_block(source) if height is None else block_at(source, height)
    if found is None:
        raise await _not_covered(source, request_uuid)
    leaf_index, identity = found
    size = _log_size(block)
    if leaf_index >= size:
        detail = (
            f"the command came into the log with block {store.height_of_leaf(leaf_index)}, "
            f"after block {height}"
        )
        raise HttpProblem(404, "not_in_the_log_yet", detail, NOT_STORED)
    answer = {
        "request_uuid": str(request_uuid),
        "command_identity_hash": hex_text(identity),
        "leaf_index": leaf_index,
        "tree_size": size,
        "path": [hex_text(node) for node in inclusion_proof(store.command_log, leaf_index, size)],
        "root": hex_text(block.roots.command_root),
        "height": block.header.batch_seq,
    }
    return tagged_answer(request, answer, immutable=height is not None)


@router.get(
    "/consistency",
    response_model=ConsistencyAnswer,
    responses=CACHED | documented(404, 422, 503),
    summary="That the journal was only ever appended to",
)
async def get_consistency_proof(
    request: Request,
    first: Annotated[int, Query(alias="from", ge=0, le=MAX_INT64, examples=[0])],
    second: Annotated[int, Query(alias="to", ge=0, le=MAX_INT64, examples=[1])],
) -> Response:
    """Proves that the command log as of block `to` begins with the command log of block `from`."""
    if first > second:
        raise HttpProblem(422, "invalid_parameter", f"from={first} is after to={second}")
    source = blocks_of(request)
    older, newer = block_at(source, first), block_at(source, second)
    sizes = _log_size(older), _log_size(newer)
    answer = {
        "from": first,
        "to": second,
        "first_size": sizes[0],
        "second_size": sizes[1],
        "first_root": hex_text(older.roots.command_root),
        "second_root": hex_text(newer.roots.command_root),
        "path": [hex_text(node) for node in consistency_proof(source.store.command_log, *sizes)],
    }
    return tagged_answer(request, answer, immutable=True)


def _log_size(block: StoredBlock) -> int:
    """The number of leaves of the command log as of a block."""
    return block.header.first_seq + block.header.command_count


async def _not_covered(source: BlockSource, request_uuid: UUID) -> HttpProblem:
    """Say why there is no leaf, as far as that can be told."""
    try:
        known = await source.is_journaled(request_uuid)
    except DatabaseUnavailable as error:
        detail = f"no block covers an entry {request_uuid}; whether there is one: {error}"
        return missing(source, "not_in_a_block", detail)
    if known:
        detail = f"the entry {request_uuid} is journaled, but no block covers it"
        return missing(source, "not_in_a_block", detail)
    return missing(source, "unknown_entry", f"no entry has the request_uuid {request_uuid}")
