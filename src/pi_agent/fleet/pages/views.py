"""The pages that every address has: the way in, and what is said when something is not there or not right."""

from __future__ import annotations

import sys

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string

from pi_agent.fleet import database
from pi_agent.fleet.rest import PROGRAMS
from pi_agent.fleet.rest.problems import problem


def home(request: HttpRequest) -> HttpResponse:
    return redirect("/devices")


ERRORS = {
    400: ("That request made no sense", "Go back and try again."),
    403: (
        "That was refused",
        "The form was too old, or came from another site. Go back, reload the page, and try again.",
    ),
    404: ("There is nothing here", "The device may have another id, or the address may be wrong."),
    405: ("There is no page here", "This address only takes what a form sends. Open the page that has the form."),
    500: ("Something went wrong", "It is our fault, and the server's log says more."),
    503: ("The registry is busy", "Nothing has changed. Go back, and try again in a few seconds."),
}


def error_page(request: HttpRequest, status: int) -> HttpResponse:
    """A page for people, problem details for programs."""
    title, words = ERRORS[status]
    if request.path.startswith(PROGRAMS):
        return problem(status, title, hint="/api/v1/openapi.json says what there is" if status == 404 else None)
    return HttpResponse(render_to_string("error.html", {"title": title, "words": words}), status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 400)


def forbidden(request: HttpRequest, exception: Exception | None = None, reason: str = "") -> HttpResponse:
    return error_page(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django asks for this page while it handles what went wrong; a database that is locked or away is nobody's fault."""
    error = sys.exception()
    if not isinstance(error, OperationalError):
        return error_page(request, 500)
    database.give_up(error)
    response = error_page(request, 503)
    response["Retry-After"] = "5"
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django would add that it is a bug, and where
    return response
