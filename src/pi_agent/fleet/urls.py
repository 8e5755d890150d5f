"""Where everything that Django serves is found. The OAuth endpoints stand ahead of it, in ``asgi``."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver

urlpatterns: list[URLPattern | URLResolver] = []
