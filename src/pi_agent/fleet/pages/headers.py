"""Headers that every page and every API answer carries (requirement D-08), and what no address may hold."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from pi_agent.fleet.pages.views import error_page

POLICY = "default-src 'self'; script-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"


def security_headers(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Django middleware. A page that shows a device is for the person who asked, so nothing is kept by a cache."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        response = error_page(request, 400) if _holds_nul(request) else get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers.setdefault("X-Frame-Options", "DENY")
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return respond


def _holds_nul(request: HttpRequest) -> bool:
    """No text here has a NUL, and PostgreSQL refuses it. A cookie can have one in quotes, as an escape."""
    return (
        "\0" in request.path
        or "%00" in request.META["QUERY_STRING"]
        or any("\0" in value for value in request.COOKIES.values())
    )
