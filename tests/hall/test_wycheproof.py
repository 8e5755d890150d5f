"""Project Wycheproof's vectors, run through the same functions as a real token. They lie beside the project, if at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pi_agent import jws
from pi_agent.errors import InvalidAssertionError, MalformedTokenError
from pi_agent.jwk import load_jwk

WYCHEPROOF = Path(__file__).resolve().parents[2].parent / "shared" / "wycheproof"
# Every valid vector for ES256, RS256 and PS256, but for those under the key that RFC 7520 prints.
VALID_FOR_US = {18, 33, *range(259, 264), *range(272, 276), 287, 288, 378}


def groups(name: str) -> list[dict[str, Any]]:
    path = WYCHEPROOF / name
    if not path.exists():
        pytest.skip("the Wycheproof vectors are not beside the project")
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["testGroups"]
    return found


def believed(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (MalformedTokenError, InvalidAssertionError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "alg", "count"),
    [("ecdsa_secp256r1_sha256_p1363_test.json", "ES256", 262), ("ed25519_test.json", "EdDSA", 151)],
)
def test_signatures(name: str, alg: str, count: int) -> None:
    """Every ECDSA P1363 and Ed25519 vector is believed or refused as Project Wycheproof says."""
    seen = 0
    for group in groups(name):
        # Not by load_jwk, which refuses one of them: it is RFC 8037's own.
        key: Any = load_pem_public_key(group["publicKeyPem"].encode())
        for test in group["tests"]:
            token = jws.UnverifiedToken({"alg": alg}, {}, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
            good = believed(lambda token=token, key=key: jws.verify_signature(token, key=key, alg=alg))  # type: ignore[misc]
            assert good == (test["result"] == "valid"), (test["tcId"], test["comment"])
            seen += 1
    assert seen == count


def test_jws() -> None:
    """No token that is marked invalid is read and verified, and every valid one of our algorithms has a good signature."""
    seen = 0
    for group in groups("json_web_signature_test.json"):
        public = group.get("public") or {}
        for test in group["tests"]:
            good = believed(lambda test=test, public=public: whole(test["jws"], public))  # type: ignore[misc]
            assert good == (test["tcId"] in VALID_FOR_US), (test["tcId"], test["comment"])
            assert test["result"] == "valid" or not good
            seen += 1
    assert seen == 401


def whole(compact: str, public: dict[str, Any]) -> None:
    """What parse and verify do, with a payload of any bytes: most of the vectors sign the text foo."""
    key = load_jwk(public)
    head, claims, signature = compact.split(".") if compact.count(".") == 2 else ("", "", "")
    empty = jws.b64url(b"{}")
    token = jws.parse(f"{head}.{empty}.{signature}")
    jws.b64url_decode(claims)
    real = jws.UnverifiedToken(token.header, {}, f"{head}.{claims}".encode(), token.signature)
    jws.verify_signature(real, key=key.key, alg=public.get("alg", key.algorithms[0]))
