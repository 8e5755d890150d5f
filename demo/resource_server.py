"""An API that trusts the fleet's access tokens, as small as one can be: PyJWT, the published keys, and nothing of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt


class ResourceServer:
    """Answers who calls, to callers with a token of ``issuer`` for ``audience`` (RFC 9068 section 4)."""

    def __init__(self, *, issuer: str, audience: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys = jwt.PyJWKClient(f"{issuer}/oauth/jwks", timeout=5)

    @contextmanager
    def running(self) -> Iterator[str]:
        """The URL it can be called at, for as long as the block runs."""
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, members = answer(self.headers.get("Authorization", ""))
                body = json.dumps(members).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: the demo says what matters."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/telemetry"
            finally:
                server.shutdown()

    def _answer(self, authorization: str) -> tuple[int, dict[str, object]]:
        kind, _, token = authorization.partition(" ")
        try:
            if kind != "Bearer" or jwt.get_unverified_header(token).get("typ") != "at+jwt":
                raise jwt.InvalidTokenError("no access token")
            key = self._keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, algorithms=["ES256"], issuer=self._issuer, audience=self._audience)
        except jwt.PyJWTError as error:
            return 401, {"error": "invalid_token", "error_description": str(error)}
        board = claims["board"]
        return 200, {"thanks": claims["sub"], "model": board["model"], "serial": board["serial"]}
