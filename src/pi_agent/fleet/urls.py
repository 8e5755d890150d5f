"""Where everything that Django serves is found. The OAuth endpoints stand ahead of it, in ``asgi``."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from pi_agent.fleet.api import api
from pi_agent.fleet.pages import session, views

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", api.urls),
    path("", views.home),
    path("devices", views.devices),
    path("devices/act", views.act),
    path("devices/<str:device_id>", views.device),
    path("sign-in", session.sign_in),
    path("sign-in/<str:token>", session.sign_in),
    path("sign-out", session.sign_out),
]
handler400 = views.bad_request
handler403 = views.forbidden
handler404 = views.not_found
handler500 = views.server_error
