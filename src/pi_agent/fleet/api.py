"""REST under ``/api/v1``: what the command line uses, and every script may. Described at ``/api/v1/openapi.json``.

Open to the owner of the data folder and root on the local socket, to operator tokens, and to a signed-in operator (with
a CSRF token for changes). A device's token opens nothing here (requirement D-03). A route without a role of its own is
for admins. Errors are problem details (RFC 9457).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, DataError
from django.http import HttpRequest, HttpResponse
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser

from pi_agent.errors import MalformedTokenError, PiAgentError
from pi_agent.fleet.rest import authority, devices, enrolling, log, people
from pi_agent.fleet.rest.common import Needs, TooOftenError, around, strict
from pi_agent.fleet.rest.document import Interface
from pi_agent.fleet.rest.problems import problem, refusal, stranger
from pi_agent.jws import load_json_object

WORDS = {"extra_forbidden": "there is no such member"}
NO_OBJECT = "the body must be one JSON object, in which no member stands twice"


class StrictParser(Parser):
    """Reads a body once and for all: of two members with one name, two readers may take two different ones."""

    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        return load_json_object(request.body)


api = Interface(
    parser=StrictParser(),
    title="pi-fleet",
    version="1",
    docs_url=None,
    openapi_url="/openapi.json",
    auth=Needs("admin"),
    description="Which boards there are, which of them authenticated when, and what may become of them.",
)
api.add_decorator(around, mode="view")
api.add_decorator(strict, mode="operation")
for part in (authority, devices, enrolling, log, people):
    api.add_router("", part.router)


@api.exception_handler(PiAgentError)
def _on_error(request: HttpRequest, error: PiAgentError) -> HttpResponse:
    return refusal(error)


@api.exception_handler(DataError)
def _on_data(request: HttpRequest, error: DataError) -> HttpResponse:
    """What PostgreSQL does not take, such as a NUL in a text; SQLite would, and finds nothing."""
    return problem(400, "that is no value that the registry can hold")


@api.exception_handler(DatabaseError)
def _on_database(request: HttpRequest, error: DatabaseError) -> HttpResponse:
    response = problem(503, "the registry cannot be used at the moment", hint="try again in a few seconds")
    response["Retry-After"] = "5"
    return response


@api.exception_handler(AuthenticationError)
def _on_stranger(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return stranger(request)


@api.exception_handler(TooOftenError)
def _on_too_often(request: HttpRequest, error: TooOftenError) -> HttpResponse:
    response = problem(429, str(error), hint=f"wait {error.wait} seconds")
    response["Retry-After"] = str(error.wait)
    return response


@api.exception_handler(HttpError)
def _on_http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return problem(error.status_code, NO_OBJECT if isinstance(error.__cause__, MalformedTokenError) else str(error))


@api.exception_handler(ValidationError)
def _on_invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """Which member was wrong, and what it should be; never what was sent."""
    wrong = [f"{_name(item['loc'])}: {WORDS.get(item['type'], item['msg'])}" for item in error.errors]
    return problem(400, "; ".join(wrong))


def _name(where: Sequence[object]) -> str:
    """A member by its own name: the first word says where it was sent, and in a body the second is ours."""
    words = [str(word) for word in where]
    return ".".join(words[2 if words[0] == "body" else 1 :]) or words[0]
