"""The OpenAPI document: what ninja reads from the routes, and what holds for every route and so stands at none of them."""

from __future__ import annotations

from typing import Any

from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation

from pi_agent.fleet.rest.common import MAX_KEY

PROBLEM = {
    "title": "Problem",
    "description": "Why a request was refused (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "always about:blank; the status says what kind it is"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what was wrong"},
        "hint": {"type": "string", "description": "what to do about it"},
        "position": {"type": "integer", "description": "the character at which a query is wrong, from 0"},
        "suggestion": {"type": "string", "description": "a query that would work"},
    },
    "required": ["type", "status", "detail"],
}
REFUSALS = {"4XX": "The request was refused.", "5XX": "It cannot be done at the moment."}
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    "required": False,
    "description": "With the same key the same request happens once; a secret that it answers is not remembered.",
}
IF_MATCH = {
    "in": "header",
    "name": "If-Match",
    "schema": {"type": "string"},
    "required": False,
    "description": "The ETag of the device, which nobody must have changed since; * for one that is there.",
}
OF_DEVICES = ("ChangeRequest", "TagRequest", "RenameRequest")  # bodies of changes that If-Match can hold


class Interface(NinjaAPI):
    """An API that describes its refusals and headers, and calls each operation by the name of its function."""

    made: OpenAPISchema | None = None

    def get_openapi_operation_id(self, operation: Operation) -> str:
        return operation.view_func.__name__

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        """Made once, since anybody may ask for it, and to make it takes longer than most answers."""
        self.made = self.made or self._make(**options)
        return self.made

    def _make(self, **options: Any) -> OpenAPISchema:
        document = super().get_openapi_schema(**options)
        document["components"]["schemas"]["Problem"] = PROBLEM
        for methods in document["paths"].values():
            for method, operation in methods.items():
                operation["responses"] |= {status: _refusal(words) for status, words in REFUSALS.items()}
                operation["parameters"] += _headers(method, operation)
        return document


def _refusal(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def _headers(method: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    held = body.get("$ref", "").rpartition("/")[2] in OF_DEVICES
    return [IDEMPOTENCY_KEY] * (method != "get") + [IF_MATCH] * held
