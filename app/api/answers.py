"""Answers of the framework's routes: negotiated format, problem documents, documented statuses."""

from typing import Annotated, Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.api.formats import answers_msgpack, encode
from app.api.problems import PROBLEM_JSON, TITLES, HttpProblem, Problem, problem_of


class EntryProblem(BaseModel):
    """One rule that one entry of a request breaks."""

    entry: int
    path: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457, with the extension members of this API."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(examples=["urn:journal:problem:invalid_entries"])]
    title: str
    status: int
    detail: str
    error_code: int
    message: str
    retriable: bool
    errors: list[EntryProblem] | None = None


_CONTENT: Final = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer"}}
}
_CHALLENGE: Final = {
    "WWW-Authenticate": {"description": "RFC 6750", "required": True, "schema": {"type": "string"}}
}
_HEADERS: Final = {401: _CHALLENGE, 403: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for these problems; `app.api.schema` completes the document."""
    return {
        status: {
            "description": TITLES[status],
            "content": dict(_CONTENT),
            "headers": dict(_HEADERS.get(status, {})),
        }
        for status in statuses
    }


def answer(request: Request, payload: Any, status: int = 200) -> Response:
    """Encode a payload as the client prefers."""
    body, content_type = encode(payload, msgpack=prefers_msgpack(request))
    return Response(body, status, media_type=content_type)


def problem_response(request: Request, problem: Problem) -> Response:
    """Encode a problem as the client prefers."""
    body, content_type = encode(problem.document, msgpack=prefers_msgpack(request), problem=True)
    return Response(body, problem.status, problem.headers, media_type=content_type)


async def on_error(request: Request, error: Exception) -> Response:
    """Handler for the errors of the project."""
    return problem_response(request, problem_of(error))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler for what the router raises: no such path, or another method."""
    if not isinstance(error, HTTPException):
        return await on_error(request, error)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "").replace("GET", "GET, HEAD")
        detail = f"{request.method} is not allowed on {path}; {allowed} would be"
        problem = HttpProblem(405, "method_not_allowed", detail, {"allow": allowed})
    elif error.status_code == 404:
        problem = HttpProblem(404, "not_found", f"there is nothing at {path}")
    else:
        problem = HttpProblem(400, "undecodable_body", str(error.detail))
    return problem_response(request, problem_of(problem))


async def on_invalid_parameter(request: Request, error: Exception) -> Response:
    """Handler for path and query parameters that are not valid."""
    detail = str(error)
    if isinstance(error, RequestValidationError):
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"][1:])
        missing = fault["type"] == "missing"
        value = "" if missing else f"={str(fault.get('input'))[:100]!r}"
        detail = f"{where}{value}: {fault['msg']}"
    return problem_response(request, problem_of(HttpProblem(422, "invalid_parameter", detail)))


def prefers_msgpack(request: Request) -> bool:
    """Whether the client ranks MessagePack above JSON."""
    return answers_msgpack(",".join(request.headers.getlist("accept")))
