"""Where everything that Django serves is found. The OAuth endpoints stand ahead of it, in ``asgi``."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from pi_agent.fleet.api import api

urlpatterns: list[URLPattern | URLResolver] = [path("api/v1/", api.urls)]
