"""The strict compact JWS: what a lenient library takes and this reader must not, one named test each."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import socket
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hall.material import CLAIMS, DEVICE, HEADER, ISSUER, JTI, NOW, PRIVATE, PUBLIC, signed
from pi_agent import jws
from pi_agent.errors import InvalidAssertionError, MalformedTokenError

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def refused(compact: str) -> str:
    with pytest.raises(MalformedTokenError) as caught:
        jws.parse(compact)
    return str(caught.value)


# Round trips


@pytest.mark.parametrize("alg", jws.ALGORITHMS)
def test_what_is_signed_can_be_read_and_verified(alg: str) -> None:
    """Header and claims come back as they were signed, and the signature is good, for every algorithm."""
    token = jws.parse(signed(alg=alg))
    assert (token.header, token.claims) == (HEADER | {"alg": alg}, CLAIMS)
    jws.verify_signature(token, key=PUBLIC[alg].key, alg=alg)


@given(header=st.dictionaries(st.text(), JSON, max_size=3), claims=st.dictionaries(st.text(), JSON, max_size=5))
def test_writing_and_reading_are_each_others_inverse(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Any JSON objects that are serialised come back equal from parse, unless they hold a lone surrogate."""
    header = {name: value for name, value in header.items() if name not in ("crit", "zip", "b64")} | {"alg": "EdDSA"}
    compact = jws.serialize(header, claims, sign=jws.signer(PRIVATE["EdDSA"], "EdDSA"))
    if "\\ud" in json.dumps([header, claims]) and not _encodable([header, claims]):
        refused(compact)
        return
    token = jws.parse(compact)
    assert (token.header, token.claims) == (header, claims)
    jws.verify_signature(token, key=PUBLIC["EdDSA"].key, alg="EdDSA")


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# Any input


@given(st.text() | st.from_regex(r"[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*"))
def test_any_text_gives_a_token_or_our_error(text: str) -> None:
    """parse never raises anything but MalformedTokenError."""
    with contextlib.suppress(MalformedTokenError):
        assert isinstance(jws.parse(text), jws.UnverifiedToken)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_an_object_or_our_error(data: bytes) -> None:
    """load_json_object gives a dict or MalformedTokenError, whatever the bytes are."""
    with contextlib.suppress(MalformedTokenError):
        assert isinstance(jws.load_json_object(data), dict)


@given(st.binary())
def test_base64url_round_trips(data: bytes) -> None:
    """Every byte string has one text, and that text gives it back."""
    assert jws.b64url_decode(jws.b64url(data)) == data


# B-01, B-02: size and form


def test_b01_a_token_over_16_kib_is_refused_before_anything_is_decoded() -> None:
    """One character more than MAX_LENGTH is no token; MAX_LENGTH itself is read on (and fails later, as JSON)."""
    assert refused("a" * (jws.MAX_LENGTH - 3) + ".a.a") == "not a compact signed token"
    assert refused("a" * (jws.MAX_LENGTH - 4) + ".a.a") != "not a compact signed token"


FEW_OR_MANY = ["", ".", "..", "a.b", "a.b.", "a..b", ".a.b", "a.b.c.d", "a.b.c.d.e"]
OTHER_ALPHABETS = ["a.b.c ", " a.b.c", "a.b.c\n", "a.b.c\0", "a.b.\u0661", "a+.b.c", "a.b.c==", "\ufeffa.b.c", "a .b.c"]


@pytest.mark.parametrize("compact", FEW_OR_MANY + OTHER_ALPHABETS)
def test_b02_only_three_segments_of_base64url_are_a_token(compact: str) -> None:
    """Empty segments, four dots (JWE), white space, padding and other alphabets are refused by the form alone."""
    assert refused(compact) == "not a compact signed token"


def test_b02_the_json_serialisations_of_jws_are_not_read() -> None:
    """A flattened or general JSON serialisation (RFC 7515 section 7.2) with a good signature is refused."""
    header, claims, signature = signed().split(".")
    refused(json.dumps({"protected": header, "payload": claims, "signature": signature}))
    refused(json.dumps({"payload": claims, "signatures": [{"protected": header, "signature": signature}]}))


def test_b02_v11_the_bytes_that_were_verified_are_the_bytes_that_were_read() -> None:
    """The signing input is the text that came in, not a second writing of what was understood."""
    header, claims = b'{ "alg" : "ES256" }', b'{"iss": "a", "x": 1.0}'
    token = jws.parse(signed(header, claims))
    assert token.signing_input == f"{jws.b64url(header)}.{jws.b64url(claims)}".encode()


# B-03, V-01, V-10: algorithms

NO_ALGORITHM = ["none", "None", "HS256", "HS512", "ES256K", "ES384", "RS512", "es256", "ES256 ", "eddsa", "Ed25519", ""]


@pytest.mark.parametrize("alg", [*NO_ALGORITHM, "EdDSA\0", 5, None, True, ["ES256"], {"ES256": 1}])
def test_b03_an_algorithm_outside_the_list_is_refused(alg: Any) -> None:
    """Only the four names are algorithms, byte for byte; a list that holds one is none."""
    assert "alg" in refused(signed({"alg": alg, "kid": "k"}))


def test_b03_a_header_without_alg_is_refused() -> None:
    """A missing alg is not the default algorithm."""
    refused(signed({"kid": "k"}))


@pytest.mark.parametrize("alg", jws.ALGORITHMS)
@pytest.mark.parametrize("enrolled", jws.ALGORITHMS)
def test_b03_v10_the_key_decides_the_algorithm_and_the_header_only_agrees(alg: str, enrolled: str) -> None:
    """A token whose header names another algorithm than its key was enrolled with is a bad signature."""
    token = jws.parse(signed(alg=alg))
    if alg == enrolled:
        jws.verify_signature(token, key=PUBLIC[enrolled].key, alg=enrolled)
        return
    with pytest.raises(InvalidAssertionError) as caught:
        jws.verify_signature(token, key=PUBLIC[enrolled].key, alg=enrolled)
    assert caught.value.claim == "signature"


@pytest.mark.parametrize("named", ["EdDSA", "RS256", "PS256"])
def test_b03_v10_a_header_that_lies_about_a_good_signature_is_refused(named: str) -> None:
    """The signature is good under the enrolled algorithm; the header says it was another one."""
    token = jws.parse(signed(HEADER | {"alg": named}, alg="ES256"))
    with pytest.raises(InvalidAssertionError):
        jws.verify_signature(token, key=PUBLIC["ES256"].key, alg="ES256")


def test_v01_a_public_key_is_no_hmac_secret() -> None:
    """A token "signed" with HMAC under the public key's own bytes has no algorithm we know."""
    secret = PUBLIC["ES256"].key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signing_input = jws.b64url(b'{"alg":"HS256"}') + "." + jws.b64url(json.dumps(CLAIMS).encode())
    refused(f"{signing_input}.{jws.b64url(hmac.digest(secret, signing_input.encode(), 'sha256'))}")


# B-04, V-04: no key comes from a token


def test_b04_v04_keys_and_addresses_in_the_header_are_not_read() -> None:
    """A jwk in the header does not verify the token it came in, and a jku or x5u is not fetched."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.05)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/keys"
        own = PUBLIC["RS256"].jwk | {"alg": "RS256"}
        token = jws.parse(
            signed({"alg": "RS256", "jwk": own, "jku": url, "x5u": url, "x5c": ["AA=="], "x5t": "A"}, alg="RS256")
        )
        with pytest.raises(InvalidAssertionError):
            jws.verify_signature(token, key=PUBLIC["ES256"].key, alg="ES256")
        with pytest.raises(TimeoutError):
            bait.accept()


# B-05: signatures


def es256_with(r: int, s: int) -> jws.UnverifiedToken:
    head = signed().rpartition(".")[0]
    return jws.parse(f"{head}.{jws.b64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}")


@pytest.mark.parametrize(
    ("r", "s"), [(0, 0), (0, 1), (1, 0), (1, 1), (P256_ORDER, P256_ORDER), (P256_ORDER, 1), (2**256 - 1, 2**256 - 1)]
)
def test_b05_cve_2022_21449_r_and_s_must_be_in_range(r: int, s: int) -> None:
    """The numbers that a careless verifier takes for any message are a bad signature."""
    with pytest.raises(InvalidAssertionError):
        jws.verify_signature(es256_with(r, s), key=PUBLIC["ES256"].key, alg="ES256")


def test_b05_adding_the_order_to_s_does_not_make_a_second_signature() -> None:
    """s + n is the same number to a verifier that forgets the range check; here it does not even fit or is refused."""
    signature = jws.parse(signed()).signature
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if s + P256_ORDER < 2**256:
        with pytest.raises(InvalidAssertionError):
            jws.verify_signature(es256_with(r, s + P256_ORDER), key=PUBLIC["ES256"].key, alg="ES256")


def test_b05_a_high_s_is_accepted_and_means_nothing() -> None:
    """(r, n - s) is as good as (r, s): RFC 7518 asks for no low s, and a replay is known by its jti, not its signature."""
    compact = signed()
    signature = jws.parse(compact).signature
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    other = r.to_bytes(32, "big") + (P256_ORDER - s).to_bytes(32, "big")
    twin = jws.parse(f"{compact.rpartition('.')[0]}.{jws.b64url(other)}")
    jws.verify_signature(twin, key=PUBLIC["ES256"].key, alg="ES256")
    assert twin.claims == CLAIMS


@pytest.mark.parametrize("length", [1, 32, 63, 65, 96, 128])
def test_b05_a_signature_of_another_length_is_refused(length: int) -> None:
    """ES256 is 64 bytes (RFC 7518 section 3.4), whatever they are cut from."""
    compact = signed()
    raw = (jws.parse(compact).signature * 2)[:length]
    token = jws.parse(f"{compact.rpartition('.')[0]}.{jws.b64url(raw)}")
    with pytest.raises(InvalidAssertionError):
        jws.verify_signature(token, key=PUBLIC["ES256"].key, alg="ES256")


def test_b05_a_der_signature_is_refused() -> None:
    """What ECDSA libraries give by default is not the form of JWS."""
    head = signed().rpartition(".")[0]
    token = jws.parse(f"{head}.{jws.b64url(PRIVATE['ES256'].sign(head.encode(), ECDSA(SHA256())))}")
    with pytest.raises(InvalidAssertionError):
        jws.verify_signature(token, key=PUBLIC["ES256"].key, alg="ES256")


def test_b05_an_ed25519_s_above_the_order_is_refused() -> None:
    """S + L is a second signature only to a verifier without RFC 8032 section 5.1.7's range check."""
    compact = signed(alg="EdDSA")
    raw = jws.parse(compact).signature
    larger = int.from_bytes(raw[32:], "little") + ED25519_ORDER
    token = jws.parse(f"{compact.rpartition('.')[0]}.{jws.b64url(raw[:32] + larger.to_bytes(32, 'little'))}")
    with pytest.raises(InvalidAssertionError):
        jws.verify_signature(token, key=PUBLIC["EdDSA"].key, alg="EdDSA")


@pytest.mark.parametrize("alg", jws.ALGORITHMS)
@pytest.mark.parametrize("segment", [0, 1, 2])
def test_b05_a_changed_bit_anywhere_is_a_bad_token(alg: str, segment: int) -> None:
    """A token with one bit changed in header, claims or signature is malformed or not signed by the key."""
    segments = signed(alg=alg).split(".")
    data = bytearray(jws.b64url_decode(segments[segment]))
    data[len(data) // 2] ^= 1
    segments[segment] = jws.b64url(bytes(data))
    with pytest.raises((MalformedTokenError, InvalidAssertionError)):
        jws.verify_signature(jws.parse(".".join(segments)), key=PUBLIC[alg].key, alg=alg)


# B-06, V-03: extensions


EXTENSIONS: list[dict[str, Any]] = [
    *({"crit": crit} for crit in (["exp"], [], None, ["b64"])),
    *({"b64": b64} for b64 in (False, None, 1)),
    {"crit": ["b64"], "b64": True},
    {"zip": "DEF"},
]


@pytest.mark.parametrize("more", EXTENSIONS)
def test_b06_v03_header_extensions_are_refused(more: dict[str, Any]) -> None:
    """crit of any content, b64 other than true, and zip end the reading (RFC 7515 section 4.1.11, RFC 7797)."""
    assert refused(signed(HEADER | more)) == "crit, zip and b64 are not supported"


def test_b06_b64_true_says_nothing_new() -> None:
    """The default, spelled out, is read."""
    assert jws.parse(signed(HEADER | {"b64": True})).claims == CLAIMS


# B-13, M-01, M-07: strict JSON

TEXT_OF_CLAIMS = json.dumps(CLAIMS)

NOT_STRICT = {
    "a member twice": b'{"iss":"a","iss":"b"}',
    "a member twice, once escaped": rb'{"iss":"a","\u0069ss":"b"}',
    "a nested member twice": b'{"board":{"a":1,"a":1}}',
    "UTF-16 little endian": TEXT_OF_CLAIMS.encode("utf-16-le"),
    "UTF-16 with BOM": TEXT_OF_CLAIMS.encode("utf-16"),
    "UTF-32": TEXT_OF_CLAIMS.encode("utf-32"),
    "UTF-8 with BOM": TEXT_OF_CLAIMS.encode("utf-8-sig"),
    "latin-1": '{"iss":"é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"iss":"\xc0\xaf"}',
    "an encoded surrogate": b'{"iss":"\xed\xa0\x80"}',
    "an escaped lone surrogate": rb'{"iss":"\ud800"}',
    "a lone surrogate in a name": rb'{"\udfff":1}',
    "NaN": b'{"exp":NaN}',
    "Infinity": b'{"exp":Infinity}',
    "-Infinity": b'{"exp":-Infinity}',
    "1e400": b'{"exp":1e400}',
    "-1e400": b'{"exp":-1e400}',
    "a number of 5,000 digits": b'{"exp":' + b"9" * 5000 + b"}",
    "2^64": b'{"exp":18446744073709551616}',
    "twenty nines": b'{"exp":99999999999999999999}',
    "-2^63 - 1": b'{"exp":-9223372036854775809}',
    "hexadecimal": b'{"exp":0x10}',
    "underscores": b'{"exp":1_000}',
    "Arabic digits": '{"exp":١٢٣}'.encode(),
    "a leading zero": b'{"exp":01}',
    "a comment": b'{/* */"exp":1}',
    "a trailing comma": b'{"exp":1,}',
    "single quotes": b"{'exp':1}",
    "a raw control character": b'{"iss":"a\nb"}',
    "two objects": b"{}{}",
    "trailing text": b"{} x",
    "trailing NUL": b"{}\0",
    "an array": b"[]",
    "a string": b'"text"',
    "null": b"null",
    "a number": b"5",
    "nothing": b" ",
    "seventeen levels": b'{"a":' * 17 + b"1" + b"}" * 17,
    "seventeen levels of arrays": b'{"a":' + b"[" * 16 + b"]" * 16 + b"}",
}


@pytest.mark.parametrize("data", NOT_STRICT.values(), ids=NOT_STRICT.keys())
def test_b13_m01_json_that_is_not_strict_is_refused(data: bytes) -> None:
    """Each of these is something that a JSON library somewhere takes; none of them is claims, or a header."""
    with pytest.raises(MalformedTokenError):
        jws.load_json_object(data)
    refused(signed(claims=data))
    refused(signed(header=data))


@pytest.mark.parametrize("levels", range(17, 1100, 41))
def test_b13_no_depth_exhausts_the_stack(levels: int) -> None:
    """However deep the nesting, the answer is MalformedTokenError and never RecursionError."""
    with pytest.raises(MalformedTokenError):
        jws.load_json_object(b'{"a":' + b"[" * levels + b"]" * levels + b"}")


def test_b13_what_strict_json_still_holds() -> None:
    """Sixteen levels, 64-bit numbers, NUL and any scalar value in text are JSON."""
    deep = b'{"a":' * 16 + b"1" + b"}" * 16
    assert jws.load_json_object(deep)["a"]
    numbers = jws.load_json_object(b'{"least":-9223372036854775808,"most":18446744073709551615,"e":1.5e3}')
    assert numbers == {"least": -(2**63), "most": 2**64 - 1, "e": 1500.0}
    assert jws.load_json_object(rb'{"t":"\u0000\ud83d\ude00"}') == {"t": "\0\U0001f600"}


# B-14: one text for one byte string


def test_b14_padding_is_refused() -> None:
    """A signature with = at its end is another text for the same bytes."""
    compact = signed()
    refused(compact + "=" * (-len(compact.rpartition(".")[2]) % 4 or 4))


def test_b14_bits_beyond_the_last_byte_are_refused() -> None:
    """The unused low bits of the last character must be zero: 64 bytes end on a character with four of them."""
    compact = signed()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = compact[:-1] + alphabet[alphabet.index(compact[-1]) + 1]
    assert base64.urlsafe_b64decode(other.rpartition(".")[2] + "==") == jws.parse(compact).signature
    assert refused(other) == "a segment is not canonical base64url"


@pytest.mark.parametrize("text", ["+/+/", "AA==", "A", "A A", "AAAA\n", "=", "AA=A", "ÄÄÄÄ", "\ud800"])
def test_b14_other_alphabets_lengths_and_spaces_are_refused(text: str) -> None:
    """Base64url is exactly the alphabet of RFC 4648 section 5, of a length that bytes can have."""
    with pytest.raises(MalformedTokenError):
        jws.b64url_decode(text)


def test_the_material_is_what_it_says() -> None:
    """The claims that these tests sign are the ones that assertion.claims writes."""
    assert CLAIMS == {"iss": DEVICE, "sub": DEVICE, "aud": ISSUER, "iat": NOW, "exp": NOW + 60, "jti": JTI}
