"""Methods that an address of the interface does not have. By itself, as every server loads it before it is asked anything."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase


def methods(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Django middleware: a method that an address of the interface does not have is a problem, too."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        if response.status_code != 405 or not request.path.startswith("/api/"):
            return response
        from pi_agent.fleet.rest.common import problem  # a server that only gives out tokens never pays for it

        refusal = problem(405, f"{request.method} is not possible here", hint=f"possible: {response['Allow']}")
        refusal["Allow"] = response["Allow"]
        return refusal

    return respond
