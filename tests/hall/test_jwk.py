"""Public keys as JWKs: which ones exist for us, and that a key is known by its thumbprint alone."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st

from hall.material import PUBLIC
from pi_agent.errors import MalformedTokenError
from pi_agent.jwk import PRIVATE_MEMBERS, REQUIRED_MEMBERS, load_jwk, public_key, thumbprint
from pi_agent.jws import b64url, b64url_decode

EC = PUBLIC["ES256"].jwk
OKP = PUBLIC["EdDSA"].jwk
RSA = PUBLIC["RS256"].jwk
P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1

# Keys whose private half is printed in a standard.
PUBLISHED: dict[str, dict[str, str]] = {
    "RFC 7515 A.2": {
        "kty": "RSA",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZ"
        "S-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2Ca"
        "pHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h"
        "4FRWyuXpoQ",
        "e": "AQAB",
    },
    "RFC 7515 A.3": {
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    },
    "RFC 7517 A.2, EC": {
        "kty": "EC",
        "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    },
    "RFC 7517 A.2, RSA": {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
        "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu"
        "6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awa"
        "pJzKnqDKgw",
        "e": "AQAB",
    },
    "RFC 7520 3.4": {
        "kty": "RSA",
        "n": "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2w"
        "qVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJls"
        "de3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc"
        "5gHdrNP5zw",
        "e": "AQAB",
    },
    "RFC 8037 A.1": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
}


def refused(jwk: dict[str, Any]) -> str:
    with pytest.raises(MalformedTokenError) as caught:
        load_jwk(jwk)
    return str(caught.value)


@pytest.mark.parametrize("alg", PUBLIC)
def test_a_key_and_its_jwk_are_each_others_inverse(alg: str) -> None:
    """What public_key writes as a JWK, load_jwk reads as the same key with the same kid and algorithms."""
    key = PUBLIC[alg]
    read = load_jwk(key.jwk)
    assert (read.jwk, read.kid, read.algorithms) == (key.jwk, key.kid, key.algorithms)
    assert alg in read.algorithms


def test_rfc_7638_3_1_the_thumbprint_of_the_standards_example() -> None:
    """The RSA key of RFC 7638 section 3.1 (that of RFC 7517 A.2) has the thumbprint printed there."""
    assert thumbprint(PUBLISHED["RFC 7517 A.2, RSA"]) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_rfc_8037_a_3_the_thumbprint_of_the_standards_example() -> None:
    """The Ed25519 key of RFC 8037 A.1 has the thumbprint printed in A.3."""
    assert thumbprint(PUBLISHED["RFC 8037 A.1"]) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("jwk", [EC, OKP, RSA], ids=["EC", "OKP", "RSA"])
def test_the_thumbprint_covers_the_required_members_and_nothing_else(jwk: dict[str, str]) -> None:
    """Order and other members change nothing; every required member changes it."""
    more = dict(reversed(jwk.items())) | {"kid": "mine", "use": "sig", "x5c": "AA"}
    assert thumbprint(more) == thumbprint(jwk)
    for name in REQUIRED_MEMBERS[jwk["kty"]]:
        if name != "kty":
            assert thumbprint(jwk | {name: "AAAA"}) != thumbprint(jwk)


@pytest.mark.parametrize("jwk", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_f02_a_key_printed_in_a_standard_is_refused(jwk: dict[str, str]) -> None:
    """A key that everybody can sign with identifies nobody, whatever members dress it up."""
    assert "published" in refused(jwk)
    assert "published" in refused(jwk | {"kid": "fresh"})


@pytest.mark.parametrize("member", sorted(PRIVATE_MEMBERS))
@pytest.mark.parametrize("jwk", [EC, OKP, RSA], ids=["EC", "OKP", "RSA"])
def test_f02_private_members_are_refused(jwk: dict[str, str], member: str) -> None:
    """A JWK with any private member is not a public key, and its sender should notice."""
    assert refused(jwk | {member: "AA"}) == "the JWK holds private members"


NOT_KEYS: dict[str, dict[str, Any]] = {
    "a symmetric key": {"kty": "oct", "k": "AAAA"},
    "an oct without k": {"kty": "oct"},
    "no kty": {name: value for name, value in EC.items() if name != "kty"},
    "kty in other case": EC | {"kty": "ec"},
    "kty a list": EC | {"kty": ["EC"]},
    "P-384": EC | {"crv": "P-384"},
    "secp256k1": EC | {"crv": "secp256k1"},
    "P-256 as OKP": EC | {"kty": "OKP"},
    "Ed25519 as EC": OKP | {"kty": "EC", "y": EC["y"]},
    "X25519": OKP | {"crv": "X25519"},
    "Ed448": OKP | {"crv": "Ed448"},
    "no y": {name: value for name, value in EC.items() if name != "y"},
    "y a number": EC | {"y": 5},
    "y not ASCII": EC | {"y": "\u0661" * 43},
    "x and y swapped": EC | {"x": EC["y"], "y": EC["x"]},
    "the point at infinity": EC | {"x": b64url(bytes(32)), "y": b64url(bytes(32))},
    "x too long by a zero": EC | {"x": b64url(b"\0" + b64url_decode(EC["x"]))},
    "x too short": EC | {"x": b64url(b64url_decode(EC["x"])[1:])},
    "x beyond the field": EC | {"x": b64url(P256_PRIME.to_bytes(32, "big"))},
    "x padded": EC | {"x": EC["x"] + "="},
    "an Ed25519 key of 31 bytes": OKP | {"x": b64url(bytes(31))},
    "an empty Ed25519 key": OKP | {"x": ""},
    "RSA without e": {"kty": "RSA", "n": RSA["n"]},
    "RSA with e = 1": RSA | {"e": "AQ"},
    "RSA with an even e": RSA | {"e": "BA"},
    "RSA with an e of 33 bits": RSA | {"e": b64url((2**32 + 1).to_bytes(5, "big"))},
    "RSA with an empty n": RSA | {"n": ""},
    "RSA of 8192 bits": RSA | {"n": b64url((2**8191 + 1).to_bytes(1024, "big"))},
    "for encryption": EC | {"use": "enc"},
    "use null": EC | {"use": None},
    "for signing": EC | {"key_ops": ["sign"]},
    "for signing and verifying": EC | {"key_ops": ["sign", "verify"]},
    "for nothing": EC | {"key_ops": []},
    "another algorithm": EC | {"alg": "RS256"},
    "an algorithm outside the list": EC | {"alg": "none"},
    "algorithms in a list": EC | {"alg": ["ES256"]},
    "nothing at all": {},
}


@pytest.mark.parametrize("jwk", NOT_KEYS.values(), ids=NOT_KEYS.keys())
def test_f02_v16_what_is_not_one_of_our_keys_is_refused(jwk: dict[str, Any]) -> None:
    """Another kind, curve, length or purpose, and points off the curve, are MalformedTokenError."""
    refused(jwk)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())])
def test_f02_key_objects_on_other_curves_are_refused(key: Any) -> None:
    """A key object of another curve is as little ours as its JWK."""
    with pytest.raises(MalformedTokenError):
        public_key(key.public_key())


def test_f02_key_objects_of_other_kinds_and_sizes_are_refused() -> None:
    """Ed448 and RSA of 1024 bits are not used here."""
    small: Any = rsa.generate_private_key(65537, 1024)
    other: Any = ed448.Ed448PrivateKey.generate()
    for key in (small.public_key(), other.public_key()):
        with pytest.raises(MalformedTokenError):
            public_key(key)


@pytest.mark.parametrize("jwk", [EC, OKP, RSA], ids=["EC", "OKP", "RSA"])
def test_what_a_jwk_may_say_besides(jwk: dict[str, str]) -> None:
    """use sig, key_ops verify, its own alg, a kid and unknown members do not stand in the way, and are not kept."""
    own = load_jwk(jwk).algorithms[-1]
    read = load_jwk(jwk | {"alg": own, "use": "sig", "key_ops": ["verify"], "kid": "x", "new": [1]})
    assert read.jwk == jwk
    assert read.kid == thumbprint(jwk)


VALUES = (
    st.none() | st.integers() | st.text(max_size=50) | st.sampled_from([*EC.values(), *OKP.values(), "RSA", "P-384"])
)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "key_ops", "k"]), VALUES | st.lists(VALUES)
    )
)
def test_any_jwk_gives_a_key_or_our_error(jwk: dict[str, Any]) -> None:
    """load_jwk never raises anything but MalformedTokenError."""
    with contextlib.suppress(MalformedTokenError):
        assert load_jwk(jwk).kid
