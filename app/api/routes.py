"""Everything but `POST /entries` (protocol, section 2)."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from app.api.answers import answer, documented
from app.api.problems import HttpProblem
from app.api.security import Guard, authorization_of
from app.errors import Unavailable
from app.service.journal import Journal

router = APIRouter()

_MAX_FLUSH_S = 3600
# Each takes one of the places of calls for as long as it waits, whether its client stays or not.
MAX_FLUSHES = 256


class CheckpointAnswer(BaseModel):
    """How far the journal is durable, and how far it is replicated."""

    environment: str
    wal_id: str
    wal_offset: int
    last_command_id: int
    last_l2_seq: int | None
    durable_offset: int
    unreplicated_bytes: int
    replication: Literal["streaming", "catching_up", "down", "stopped"]
    dead_letters: int


class EntryAnswer(BaseModel):
    """Where one entry is."""

    request_uuid: UUID
    command_id: int
    status: Literal["durable", "replicated", "dead_letter"]
    block_height: int | None


class PartAnswer(BaseModel):
    """The state of one part of the service."""

    state: str
    detail: str | None = None


class HealthAnswer(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class ReadinessAnswer(BaseModel):
    """Whether entries can be acknowledged, and the state of each part."""

    ready: bool
    parts: Annotated[dict[str, PartAnswer], Field(examples=[{"wal": {"state": "ok"}}])]


def journal_of(request: Request) -> Journal:
    """The journal that the application serves."""
    journal: Journal = request.app.state.journal
    return journal


@router.get(
    "/entries/{request_uuid}",
    response_model=EntryAnswer,
    responses=documented(404, 422, 503),
    summary="Where an entry is",
)
async def get_entry(request: Request, request_uuid: UUID) -> Response:
    """`durable` once acknowledged, `replicated` once in Postgres, or `dead_letter`."""
    found = await journal_of(request).look_up(request_uuid)
    if found is None:
        raise HttpProblem(404, "unknown_entry", f"no entry has the request_uuid {request_uuid}")
    command_id, status = found
    return answer(
        request,
        {
            "request_uuid": str(request_uuid),
            "command_id": command_id,
            "status": status.value,
            "block_height": journal_of(request).block_height(request_uuid),
        },
    )


class Flushes:
    """How many flushes wait, so that they can't take all of the places of calls."""

    def __init__(self, limit: int = MAX_FLUSHES) -> None:
        self._limit = limit
        self._waiting = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one. Raises `Unavailable` where there is none."""
        if self._waiting >= self._limit:
            raise Unavailable(f"{self._limit} flushes wait, and no more are taken on")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


@router.post(
    "/flush",
    response_model=CheckpointAnswer,
    responses=documented(422, 503, 504),
    summary="Wait until all that was accepted is replicated",
)
async def flush(
    request: Request,
    timeout_s: Annotated[float, Query(ge=0, le=_MAX_FLUSH_S, allow_inf_nan=False)] = 30,
) -> Response:
    """Returns the checkpoint once it covers everything that was accepted before the call."""
    journal = journal_of(request)
    flushes: Flushes = request.app.state.flushes
    try:
        with flushes.place():
            async with asyncio.timeout(timeout_s):
                await journal.flush()
    except TimeoutError:
        status = journal.checkpoint()
        detail = (
            f"after {timeout_s:g} s {status['unreplicated_bytes']} bytes are not replicated; "
            f"replication is {status['replication']}"
        )
        raise HttpProblem(504, "flush_timeout", detail) from None
    return answer(request, journal.checkpoint())


@router.get(
    "/checkpoint",
    response_model=CheckpointAnswer,
    responses=documented(503),
    summary="How far the journal is durable and replicated",
)
async def get_checkpoint(request: Request) -> Response:
    """The checkpoint on disk, and the end of what is durable."""
    return answer(request, journal_of(request).checkpoint())


@router.get("/healthz", response_model=HealthAnswer, summary="Whether the process runs")
async def get_health(request: Request) -> Response:
    """200 while the process runs; touches nothing else."""
    return answer(request, {"status": "ok"})


@router.get(
    "/readyz",
    response_model=ReadinessAnswer,
    responses={503: {"model": ReadinessAnswer, "description": "Entries can't be acknowledged"}},
    summary="Whether entries can be acknowledged",
)
async def get_readiness(request: Request) -> Response:
    """200 while entries can be acknowledged, else 503; the body names each part and its state.

    Details, which may name hosts and databases, are for those who may read.
    """
    ready, parts = journal_of(request).readiness()
    guard: Guard = request.app.state.guard
    if not guard.trusts(request.scope, authorization_of(request)):
        parts = {name: {"state": part["state"]} for name, part in parts.items()}
    return answer(request, {"ready": ready, "parts": parts}, 200 if ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Prometheus metrics",
)
async def get_metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    journal = journal_of(request)
    journal.collect()
    return Response(generate_latest(journal.metrics.registry), media_type=CONTENT_TYPE_LATEST)
