"""Where everything that Django serves is found. The OAuth endpoints stand ahead of it, in ``asgi``."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from pi_agent.fleet import discovery, metrics
from pi_agent.fleet.api import api
from pi_agent.fleet.pages import deciding, listing, office, session, views

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", api.urls),
    path("", views.home),
    path("devices", listing.devices),
    path("devices.csv", listing.csv),
    path("devices/suggest", listing.suggest),
    path("devices/charts", listing.chart_page),
    path("devices/act", deciding.act),
    path("devices/<str:device_id>", deciding.device),
    path("views", listing.save_view),
    path("pending", deciding.pending),
    path("audit", office.audit_log),
    path("enrollment", office.enrollment),
    path("settings", office.office),
    path("api", office.interface),
    path("sd/prometheus", discovery.prometheus),
    path("metrics", metrics.show),
    path("sign-in", session.sign_in),
    path("sign-in/<str:token>", session.sign_in),
    path("sign-out", session.sign_out),
]
handler400 = views.bad_request
handler403 = views.forbidden
handler404 = views.not_found
handler500 = views.server_error
