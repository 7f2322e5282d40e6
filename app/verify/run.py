"""A run of `journal verify`: what was asked for, the run itself, and what came of it."""

import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from app.chain.header import Delegation
from app.chain.position import Position, beginning
from app.chain.verify import Block, ChainCheck, Fault, Tally, Terms, Unverifiable
from app.errors import JournalError, OperatingError
from app.verify import service
from app.verify.audit import audit
from app.verify.proofs import Marks, check_proofs
from app.verify.source import Extent, Source
from app.verify.wal import WalSource
from app.wal.files import FileSystem, write_new_file

FAULT: Final = 1
UNVERIFIABLE: Final = 2
_URLS: Final = ("http://", "https://")
_DATABASES: Final = ("postgresql://", "postgres://")

ShowProgress = Callable[[Tally, Extent], None]


class Request(Struct, kw_only=True, frozen=True):
    """What was asked for. `environment` is that of a database, `token` and `tls` are for a URL."""

    source: str
    environment: str
    cold_address: tuple[bytes, ...] = ()
    strict: bool = False
    allow_unsigned: bool = False
    service_hashed: bool = False
    from_height: int | None = None
    trusted_hash: bytes | None = None
    resume: Path | None = None
    save: Path | None = None
    authorities: Path | None = None
    proofs: int = 16
    token: str | None = None
    tls: ssl.SSLContext | bool = True


class Report(Struct, kw_only=True, frozen=True):
    """What came of it. `height` and `block_hash` are of the newest block that was found right.

    `status` is 0, `FAULT` with `fault`, or `UNVERIFIABLE`; `error` is the reason in one line.
    """

    status: int
    source: str
    height: int | None
    block_hash: str | None
    proofs: int
    warnings: list[str]
    fault: dict[str, Any] | None
    error: str | None
    checked: Tally


async def run(request: Request, show: ShowProgress) -> Report:
    """Check what was asked for, and tell. `show` is called behind each block."""
    position, tally, proofs, first = beginning(), Tally(), 0, 0
    failure: JournalError | None = None
    try:
        position = _start(request)
        first = position.height
        check = ChainCheck(_terms(request), position)
        tally = check.tally
        for delegation in _given_delegations(request):
            check.add_delegation(delegation)
        async with _opened(request) as source:
            proofs = await _check(source, check, request.proofs, show)
        if request.save is not None:
            _save(request.save, position)
    except JournalError as error:
        failure = error
    return _report(request, position, tally, first, proofs, failure)


def _terms(request: Request) -> Terms:
    if not request.cold_address and not request.allow_unsigned:
        raise Unverifiable("--cold-address is missing (or --allow-unsigned)")
    return Terms(
        frozenset(request.cold_address),
        request.strict,
        request.allow_unsigned,
        request.service_hashed,
    )


def _start(request: Request) -> Position:
    """Where to begin. Raises `Unverifiable` where that is not said well."""
    height, trusted = request.from_height, request.trusted_hash
    if (height is None) != (trusted is None):
        raise Unverifiable("--from-height and --trusted-hash are given together")
    if request.resume is not None:
        if height is not None:
            raise Unverifiable("--resume says by itself where to begin")
        try:
            return msgspec.json.decode(request.resume.read_bytes(), type=Position)
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise Unverifiable(f"{request.resume}: {error}") from None
    if height is not None and trusted is not None:
        return Position(height=height, block_hash=trusted)
    return beginning()


def _given_delegations(request: Request) -> Iterable[Delegation]:
    path = request.authorities
    if path is None:
        return ()
    try:
        return service.delegations(path.read_bytes(), str(path))
    except OSError as error:
        raise Unverifiable(f"{path}: {error.strerror}") from error


@asynccontextmanager
async def _opened(request: Request) -> AsyncIterator[Source]:
    name = request.source
    async with AsyncExitStack() as stack:
        if name.startswith(_URLS):
            connection = service.connected(name, request.tls, request.token)
            yield await stack.enter_async_context(connection)
        elif name.startswith(_DATABASES):
            from app.verify import database  # noqa: PLC0415 - loads the driver

            yield await stack.enter_async_context(database.connected(name, request.environment))
        else:
            yield WalSource(Path(name), FileSystem())


async def _check(source: Source, check: ChainCheck, proofs: int, show: ShowProgress) -> int:
    """Check all of `source`; return how many proofs were."""
    marks = Marks(proofs, random.SystemRandom())

    def on_block(block: Block) -> None:
        marks.add(block)
        show(check.tally, source.extent)

    await audit(source, check, on_block)
    return 0 if source.prover is None else await check_proofs(source.prover, marks)


def _save(path: Path, position: Position) -> None:
    data = msgspec.json.format(msgspec.json.encode(position), indent=2) + b"\n"
    try:
        write_new_file(FileSystem(), path, data)
    except OSError as error:
        raise OperatingError(f"all is right, but can't be saved: {path}: {error}") from error


def _report(
    request: Request,
    position: Position,
    tally: Tally,
    first: int,
    proofs: int,
    failure: JournalError | None,
) -> Report:
    status, fault = (0 if failure is None else UNVERIFIABLE), None
    if isinstance(failure, Fault):
        status = FAULT
        names = ("height", "field", "expected", "found")
        fault = {name: getattr(failure, name) for name in names}
    some = position.height > first
    return Report(
        status=status,
        source=request.source,
        height=position.height - 1 if some else None,
        block_hash=f"0x{position.block_hash.hex()}" if some else None,
        proofs=proofs,
        warnings=list(_warnings(request, position, tally)),
        fault=fault,
        error=None if failure is None else " ".join(str(failure).split()),
        checked=tally,
    )


def _warnings(request: Request, position: Position, tally: Tally) -> Iterator[str]:
    if not tally.blocks:
        return
    if not request.cold_address:
        yield "no cold address was given: anybody may have made these blocks"
    elif tally.newest_signed is None:
        yield "no block is signed: anybody may have made them"
    elif tally.newest_signed < position.height - 1:
        yield f"the blocks after {tally.newest_signed} are not signed: nobody vouches for them"
    if position.logs is None:
        yield "the roots of the logs were not derived, and so the events were not checked"
    if tally.engine_hashed:
        yield (
            f"the data of {tally.engine_hashed} commands is not covered: the engine sent their "
            "identity hashes"
        )
