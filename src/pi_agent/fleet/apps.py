"""The name under which Django knows the fleet."""

from __future__ import annotations

from django.apps import AppConfig


class FleetConfig(AppConfig):
    name = "pi_agent.fleet"
    label = "fleet"
    verbose_name = "Fleet"
    default_auto_field = "django.db.models.BigAutoField"
