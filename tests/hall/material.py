"""Keys of every kind we use, and ways to sign what no honest signer would: raw bytes in place of header and claims."""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pi_agent import assertion, jws
from pi_agent.jwk import PublicKey, public_key

PRIVATE: dict[str, Any] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(65537, 2048),
}
PRIVATE["PS256"] = PRIVATE["RS256"]
PUBLIC: dict[str, PublicKey] = {alg: public_key(key.public_key()) for alg, key in PRIVATE.items()}

NOW = 1_800_000_000
ISSUER = "https://fleet.example"
DEVICE = "pi-4f1c"
JTI = "0123456789abcdef"

HEADER: dict[str, Any] = {"alg": "ES256", "kid": PUBLIC["ES256"].kid, "typ": "pi-device-grant+jwt"}
CLAIMS: dict[str, Any] = assertion.claims(issuer=DEVICE, audience=ISSUER, now=NOW, jti=JTI)


def encoded(value: Any) -> bytes:
    """JSON of ``value``, or ``value`` itself where it is bytes already: what a hostile signer wants to have signed."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def signed(header: Any = None, claims: Any = None, *, alg: str = "ES256") -> str:
    """A compact JWS with a good signature over whatever ``header`` and ``claims`` are."""
    head = jws.b64url(encoded(HEADER | {"alg": alg} if header is None else header))
    signing_input = f"{head}.{jws.b64url(encoded(CLAIMS if claims is None else claims))}"
    return f"{signing_input}.{jws.b64url(jws.signer(PRIVATE[alg], alg)(signing_input.encode()))}"
