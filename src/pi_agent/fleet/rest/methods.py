"""Methods that an address does not have. By itself, as every server loads it before it is asked anything."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from pi_agent.fleet.rest import PROGRAMS

Respond = Callable[[HttpRequest], HttpResponse | StreamingHttpResponse]


def methods(get_response: Respond) -> Respond:
    """Django middleware: a method that an address does not have is a problem, too, and a page for people.

    For programs, HEAD is GET without the content.
    """

    def respond(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        if not request.path.startswith(PROGRAMS):
            return _for_people(request, get_response(request))
        if request.method == "HEAD":
            request.method = "GET"
            return _head(get_response(request))
        response = get_response(request)
        if response.status_code != 405:
            return response
        from pi_agent.fleet.rest.problems import problem  # a server that only gives out tokens never pays for it

        refusal = problem(405, f"{request.method} is not possible here", hint=f"possible: {response['Allow']}")
        refusal["Allow"] = response["Allow"]
        return refusal

    return respond


def _for_people(
    request: HttpRequest, response: HttpResponse | StreamingHttpResponse
) -> HttpResponse | StreamingHttpResponse:
    if response.status_code != 405:
        return response
    from pi_agent.fleet.pages.views import error_page  # as above

    page = error_page(request, 405)
    page["Allow"] = response["Allow"]
    return page


def _head(response: HttpResponse | StreamingHttpResponse) -> HttpResponse | StreamingHttpResponse:
    """The same answer without its content. Of what would be sent as it is read, nothing is read."""
    if isinstance(response, StreamingHttpResponse):
        response.streaming_content = ()
    else:
        response["Content-Length"] = str(len(response.content))
        response.content = b""
    return response
