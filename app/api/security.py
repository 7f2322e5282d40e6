"""Access to the API, in one place for every path (protocol, section 2; RFC 6750).

Every path needs the scope `read`, save those named here: what no line mentions is not open.
"""

import math
from collections.abc import MutableMapping
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any, Final, NoReturn

from prometheus_client import Counter
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send

from app.access import Access, Grant, RefusalLog
from app.api.answers import documented, problem_response
from app.api.problems import HttpProblem, problem_of
from app.settings import is_loopback
from app.tokens import PREFIX, Scope, digest_of, id_of

OPEN: Final = frozenset({"/healthz", "/readyz"})
WRITING: Final = frozenset({("POST", "/entries"), ("POST", "/flush")})
_SHOWN_CHARACTERS: Final = 100
_IPV4_AS_IPV6: Final = "::ffff:"

AsgiScope = MutableMapping[str, Any]


def needed_scope(method: str, path: str) -> Scope:
    """The scope that a call needs, unless its path is `OPEN`."""
    return Scope.WRITE if (method, path) in WRITING else Scope.READ


class Guard:
    """Lets a request in, or raises the `HttpProblem` that says why not, and logs it."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._log = RefusalLog()

    def admit(self, scope: AsgiScope, authorization: bytes, needed: Scope) -> Grant | None:
        """The grant of the token in `authorization`; None where no tokens are in force.

        `journal serve` listens on loopback alone, then; other servers are told elsewhere where to.
        `authorization` is the value of the header, the values of several joined by commas. Raises a
        401 or 403. Nothing of the body needs to have been read.
        """
        if not self._access.enforced:
            if self._access.local_only:
                self._admit_local(scope)
            return None
        token = _bearer_token(authorization)
        grant = self._access.find(token)
        if grant is None:
            self._refuse_stranger(scope, token)
        if self._access.expired(grant):
            detail = "the token has expired"
            self._refuse(scope, 401, "token_expired", detail, _shown(grant), "invalid_token")
        if needed not in grant.scopes:
            detail = f"the token lacks the scope {needed.value!r}"
            error = f'insufficient_scope", scope="{needed.value}'
            self._refuse(scope, 403, "scope_missing", detail, _shown(grant), error)
        return grant

    def charge(self, scope: AsgiScope, grant: Grant | None, entries: int) -> None:
        """Count the entries of a request against its token's quota. Raises a 429.

        With 0 entries it only asks whether the token may journal any now.
        """
        if grant is None or grant.quota is None:
            return
        if wait_s := grant.quota.wait_s():
            detail = f"the token's quota is {grant.quota.entries_per_s} entries per second"
            self._log.refused("over_quota", _described(scope, _shown(grant)))
            raise HttpProblem(429, "over_quota", detail, {"retry-after": str(math.ceil(wait_s))})
        grant.quota.take(entries)

    def trusts(self, scope: AsgiScope, authorization: bytes) -> bool:
        """Whether the sender may read what an `OPEN` path does not tell to everybody."""
        if not self._access.enforced:
            return not self._access.local_only or (
                _is_local(scope) and _is_local_name(_host_of(scope))
            )
        grant = self._access.find(_bearer_token(authorization))
        return grant is not None and Scope.READ in grant.scopes and not self._access.expired(grant)

    def _admit_local(self, scope: AsgiScope) -> None:
        if not _is_local(scope):
            detail = "without TOKENS_FILE only this machine is served"
            self._refuse(scope, 403, "not_local", detail, "nobody", "")
        host = _host_of(scope)
        if not _is_local_name(host):
            shown = host[:_SHOWN_CHARACTERS].decode("latin-1")
            detail = (
                f"without TOKENS_FILE the service is called by an address or 'localhost', "
                f"not {shown!r}"
            )
            self._refuse(scope, 403, "not_local", detail, "nobody", "")

    def _refuse_stranger(self, scope: AsgiScope, token: bytes) -> NoReturn:
        if not token:
            detail = "`Authorization: Bearer` with a token is needed"
            self._refuse(scope, 401, "token_missing", detail, "nobody", "")
        # Of anything else, such as a password that was sent by mistake, the hash would tell.
        known = token.startswith(PREFIX.encode())
        shown = f"token {id_of(digest_of(token))}" if known else "something that is no token"
        detail = "the token is not known"
        self._refuse(scope, 401, "token_invalid", detail, shown, "invalid_token")

    def _refuse(
        self, scope: AsgiScope, status: int, reason: str, detail: str, sender: str, error: str
    ) -> NoReturn:
        self._log.refused(reason, _described(scope, sender))
        challenge = 'Bearer realm="journal"' + (f', error="{error}"' if error else "")
        raise HttpProblem(status, reason, detail, {"www-authenticate": challenge})


class Security:
    """Middleware in front of every route; `POST /entries`, which goes around it, asks the guard."""

    def __init__(self, app: ASGIApp, guard: Guard, rejected: Counter) -> None:
        self._app = app
        self._guard = guard
        self._rejected = rejected

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer with a problem, or hand the request on."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            request = Request(scope)
            needed = needed_scope(request.method, scope["path"])
            try:
                self._guard.admit(scope, authorization_of(request), needed)
            except HttpProblem as error:
                self._rejected.labels(error.reason).inc()
                await problem_response(request, problem_of(error))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def describe_security(document: dict[str, Any], *, enforced: bool) -> None:
    """Say in an OpenAPI document what each call needs, and how it is refused without.

    Where tokens are not enforced, calls need none, and ignore one.
    """
    document["components"]["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of `journal tokens new`, where the service has TOKENS_FILE. "
            "The scope `admin` includes `read` and `write`.",
        }
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in OPEN:
                operation["security"] = []
                continue
            scope = needed_scope(method.upper(), path)
            operation["security"] = [{"bearer": [scope.value]}] + ([] if enforced else [{}])
            refusals = documented(401, 403)
            operation["responses"] |= {str(status): refusals[status] for status in refusals}


def authorization_of(request: Request) -> bytes:
    """The value of the `Authorization` header, as `Guard` wants it."""
    return ",".join(request.headers.getlist("authorization")).encode("latin-1")


def _bearer_token(authorization: bytes) -> bytes:
    """The token of the header; empty where there is none, or another scheme."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else b""


def _is_local(scope: AsgiScope) -> bool:
    """Whether the client is on this machine. One without an address came by a Unix socket."""
    client = scope.get("client")
    return not client or not client[0] or _is_of_this_machine(client[0])


@lru_cache(maxsize=256)
def _is_of_this_machine(host: str) -> bool:
    return is_loopback(host.removeprefix(_IPV4_AS_IPV6))


def _host_of(scope: AsgiScope) -> bytes:
    """What the client calls the service; empty where it does not say."""
    return next((value for name, value in scope.get("headers", ()) if name == b"host"), b"")


@lru_cache(maxsize=256)
def _is_local_name(host: bytes) -> bool:
    """Whether no name in the public DNS is meant.

    Who owns one can have it point to this machine, and so have a browser here send what a page of
    theirs likes ("DNS rebinding"). Names without a dot are nobody's to own there.
    """
    name, _, port = host.rpartition(b":")
    name = (name if port.isdigit() else host).removesuffix(b".").lower()
    if name.startswith(b"[") or b"." not in name or name.endswith(b".localhost"):
        return True
    try:
        IPv4Address(name.decode("latin-1"))
    except ValueError:
        return False
    return True


def _shown(grant: Grant) -> str:
    return f"{grant.name} (token {id_of(grant.digest.hex())})"


def _described(scope: AsgiScope, sender: str) -> str:
    client = scope.get("client")
    where = client[0] if client else "an unknown address"
    # What a client chooses is quoted, so that it can't look like a line of the log.
    return f"{scope['method']} {scope['path'][:_SHOWN_CHARACTERS]!r} by {sender}, from {where}"
