"""The server's side of tokens and of key rotation, small and strict: it gives a token to a key it knows, and to nobody else."""

from __future__ import annotations

import json
import socket
import time

from device.servers import Request, reply, token
from pi_agent import assertion, jwk, jws


class Rotating:
    """``keys`` by kid, the newest last; the first use of it retires the others. ``is_due``: it asks for another one.

    ``given`` counts the tokens, which are ``token-1``, ``token-2``, ... and live ``life`` seconds.
    """

    def __init__(self, key: jwk.PublicKey, url: str, *, life: int = 1800) -> None:
        self.url = url
        self.keys = {key.kid: key}
        self._seen = dict(self.keys)
        self.is_due = False
        self.given = 0
        self.life = life
        self.metadata = {"issuer": url, "token_endpoint": url + "/token", "key_rotation_endpoint": url + "/rotate"}

    def __call__(self, channel: socket.socket, request: Request) -> None:
        path = request.line.split()[1]
        if path.startswith("/.well-known/"):
            channel.sendall(reply(self.metadata))
        elif path == "/rotate":
            channel.sendall(self._rotate(json.loads(request.body)))
        else:
            channel.sendall(self._token(request.form["assertion"]))

    def _token(self, text: str) -> bytes:
        key = self._known(text)
        if key is None:
            return reply({"error": "invalid_client"}, status=400)
        self._verify(text, key, assertion.GRANT)
        if len(self.keys) > 1 and key.kid == list(self.keys)[-1]:
            self.keys, self.is_due = {key.kid: key}, False
        self.given += 1
        more = {"key_rotation": "due"} if self.is_due else {}
        return reply(token(access_token=f"token-{self.given}", expires_in=self.life, **more))

    def _rotate(self, members: dict[str, object]) -> bytes:
        (wanted,) = members["jwks"]["keys"]  # type: ignore[index]
        public, by_old, by_new = jwk.load_jwk(wanted), str(members["signed_by_old"]), str(members["signed_by_new"])
        old = self._seen[str(jws.parse(by_old).header["kid"])]
        self._verify(by_old, old, assertion.ROTATION)
        self._verify(by_new, public, assertion.ROTATION)
        if self.keys.keys().isdisjoint((old.kid, public.kid)):  # asking again is answered, even by the retired key
            return reply({"error": "invalid_grant"}, status=400)
        self._seen[public.kid] = self.keys.setdefault(public.kid, public)
        return reply({"kid": public.kid})

    def _known(self, text: str) -> jwk.PublicKey | None:
        return self.keys.get(str(jws.parse(text).header["kid"]))

    def _verify(self, text: str, key: jwk.PublicKey, kind: assertion.Kind) -> None:
        assertion.verify(jws.parse(text), key, alg="ES256", kind=kind, audience=self.url, now=int(time.time()))
