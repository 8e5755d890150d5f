"""What a verifier believes of a signed statement: the checks that a correct call of a JWT library leaves out, one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hall.believing import AGENT, BOARD, BOOT, refused, verified
from hall.material import CLAIMS, DEVICE, HEADER, ISSUER, JTI, NOW, PRIVATE, PUBLIC, encoded, signed
from pi_agent import assertion, jws
from pi_agent.assertion import CLIENT, ENROLLMENT, GRANT, MAX_LIFETIME, SKEW, Kind
from pi_agent.errors import InvalidAssertionError, MalformedTokenError


def without(name: str) -> dict[str, Any]:
    return {other: value for other, value in CLAIMS.items() if other != name}


# Round trips


@pytest.mark.parametrize("alg", jws.ALGORITHMS)
@pytest.mark.parametrize("kind", [GRANT, CLIENT, ENROLLMENT], ids=lambda kind: kind.name)
def test_what_the_device_signs_the_fleet_believes(alg: str, kind: Kind) -> None:
    """A statement written by claims and sign comes back from parse and verify with every member as it was given."""
    claims = assertion.claims(
        issuer=DEVICE, audience=ISSUER, now=NOW, jti=JTI, board=BOARD, boot=BOOT, agent=AGENT, nonce="n"
    )
    signer = jws.signer(PRIVATE[alg], alg)
    token = jws.parse(assertion.sign(claims, kind=kind, alg=alg, kid=PUBLIC[alg].kid, sign=signer))
    assert token.header == {"alg": alg, "kid": PUBLIC[alg].kid, "typ": kind.types[0]}
    assert assertion.claimed_identity(token) == (DEVICE, PUBLIC[alg].kid)
    found = assertion.verify(token, PUBLIC[alg], alg=alg, kind=kind, audience=ISSUER, now=NOW)
    assert (found.issuer, found.kid, found.jti, found.issued_at, found.expires_at) == (
        DEVICE,
        PUBLIC[alg].kid,
        JTI,
        NOW,
        NOW + 60,
    )
    assert (found.board, found.boot, found.agent, found.claims) == (BOARD, BOOT, AGENT, claims)


def test_a02_the_claims_are_the_documented_ones() -> None:
    """iss, sub, one aud, iat, exp and jti always; the others when they are given; None is left out."""
    assert assertion.claims(issuer=DEVICE, audience=ISSUER, now=NOW, jti=JTI, board=None, boot=BOOT) == {
        "iss": DEVICE, "sub": DEVICE, "aud": ISSUER, "iat": NOW, "exp": NOW + 60, "jti": JTI, "boot": BOOT,
    }  # fmt: skip


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LIFETIME + 1])
def test_a03_no_assertion_lives_longer_than_the_limit(lifetime: int) -> None:
    """A life of nothing, or of more than five minutes, cannot be written."""
    with pytest.raises(ValueError, match="lives 1 to 300 seconds"):
        assertion.claims(issuer=DEVICE, audience=ISSUER, now=NOW, jti=JTI, lifetime=lifetime)


def test_a_foreign_server_may_ask_for_typ_jwt() -> None:
    """typ replaces our own type in the header, and our verifier takes both."""
    compact = assertion.sign(
        CLAIMS, kind=GRANT, alg="ES256", kid="k", sign=jws.signer(PRIVATE["ES256"], "ES256"), typ="JWT"
    )
    assert jws.parse(compact).header["typ"] == "JWT"
    assert verified(header={"alg": "ES256", "typ": "JWT"}).issuer == DEVICE


# Any claims

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=150),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
NEAR = {
    **{name: st.just(value) for name, value in CLAIMS.items()},
    "iat": st.integers(NOW - 400, NOW + 100),
    "exp": st.integers(NOW - 100, NOW + 500),
    "board": st.just(BOARD),
    "boot": st.just(BOOT),
    "agent": st.just(AGENT),
    "nbf": st.integers(NOW - 100, NOW + 100),
}


@given(st.fixed_dictionaries({}, optional={name: usual | ANYTHING for name, usual in NEAR.items()}))
def test_any_claims_give_a_verified_assertion_or_our_error(claims: dict[str, Any]) -> None:
    """verify raises nothing but InvalidAssertionError, and what it lets through keeps every promise."""
    try:
        found = verified(claims)
    except (InvalidAssertionError, MalformedTokenError):
        return
    assert claims["aud"] in (ISSUER, [ISSUER])
    assert claims["sub"] == claims["iss"] == found.issuer
    assert 16 <= len(found.jti) <= 128
    assert 0 < found.expires_at - found.issued_at <= MAX_LIFETIME
    assert NOW - SKEW < found.expires_at <= NOW + MAX_LIFETIME + SKEW
    assert found.issued_at < NOW + SKEW
    assert found.board is None or set(found.board) == set(BOARD)


@given(header=st.dictionaries(st.sampled_from(["typ", "kid", "jwk", "jku", "cty"]), ANYTHING))
def test_any_header_gives_a_verified_assertion_or_our_error(header: dict[str, Any]) -> None:
    """Whatever stands in the header besides alg, the outcome is a value or one of our errors."""
    try:
        token = jws.parse(signed({"alg": "ES256"} | header))
        assertion.claimed_identity(token)
        assertion.verify(token, PUBLIC["ES256"], alg="ES256", kind=GRANT, audience=ISSUER, now=NOW)
    except (InvalidAssertionError, MalformedTokenError):
        return
    assert header.get("typ", "JWT") in GRANT.types


# B-03 and B-05, through the verifier


def test_b03_an_assertion_by_another_key_is_refused() -> None:
    """A good signature by a key that was not enrolled for this device is a bad signature."""
    token = jws.parse(signed(alg="EdDSA"))
    with pytest.raises(InvalidAssertionError) as caught:
        assertion.verify(token, PUBLIC["ES256"], alg="ES256", kind=GRANT, audience=ISSUER, now=NOW)
    assert caught.value.claim == "signature"


def test_b22_the_signature_is_looked_at_before_any_claim() -> None:
    """A forger learns nothing about aud, times or jti: with a bad signature every other fault is silent."""
    head = signed(claims={"iss": 5, "exp": "x"}).rpartition(".")[0]
    with pytest.raises(InvalidAssertionError) as caught:
        assertion.verify(
            jws.parse(f"{head}.{jws.b64url(bytes(64))}"),
            PUBLIC["ES256"],
            alg="ES256",
            kind=GRANT,
            audience=ISSUER,
            now=NOW,
        )
    assert caught.value.claim == "signature"


# B-07: typ


@pytest.mark.parametrize(
    "typ", ["at+jwt", "jwt", "application/pi-device-grant+jwt", "logout+jwt", "", 5, None, ["JWT"]]
)
@pytest.mark.parametrize("kind", [GRANT, CLIENT, ENROLLMENT], ids=lambda kind: kind.name)
def test_b07_another_typ_is_refused(typ: Any, kind: Kind) -> None:
    """An access token, another spelling, or a typ that is no text is none of our statements."""
    assert refused(header=HEADER | {"typ": typ}, kind=kind) == "typ"


@pytest.mark.parametrize("kind", [GRANT, CLIENT, ENROLLMENT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("other", [GRANT, CLIENT, ENROLLMENT], ids=lambda kind: kind.name)
def test_b07_no_statement_passes_for_another(kind: Kind, other: Kind) -> None:
    """What was signed for one purpose cannot be used for another (RFC 8725 section 3.11)."""
    header = HEADER | {"typ": kind.types[0]}
    if kind is other:
        assert verified(header=header, kind=kind).issuer == DEVICE
    else:
        assert refused(header=header, kind=other) == "typ"


def test_b07_a_missing_typ_is_jwt_and_no_enrollment_proof() -> None:
    """A header without typ is a plain JWT: good as a grant, never as an enrollment proof."""
    assert verified(header={"alg": "ES256"}).issuer == DEVICE
    assert refused(header={"alg": "ES256"}, kind=ENROLLMENT) == "typ"


# B-08, V-02: iss and sub


@pytest.mark.parametrize("name", ["iss", "sub"])
@pytest.mark.parametrize(
    "value", [None, 5, True, [DEVICE], {"id": DEVICE}, "", DEVICE + " ", DEVICE.upper(), DEVICE[:-1], DEVICE + "\0"]
)
def test_b08_v02_iss_and_sub_are_equal_byte_for_byte(name: str, value: Any) -> None:
    """A sub that is not exactly the iss (other case, prefix, space, another type) is refused, and so is such an iss."""
    assert refused(CLAIMS | {name: value}) == "sub"


@pytest.mark.parametrize(
    "value", ["", " a", "a\n", "-a", "a b", "a" * 129, "pi\u00e9", "a\x1b[2J", "\u202ea", "a,b", "a'--", "<a>"]
)
def test_b08_identifiers_have_one_alphabet(value: str) -> None:
    """iss and sub that agree are still refused outside 1 to 128 characters of the alphabet."""
    assert refused(CLAIMS | {"iss": value, "sub": value}) == "sub"


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "iat", "exp", "jti"])
def test_b08_to_b12_a_missing_claim_is_refused(name: str) -> None:
    """Each of the six claims is required."""
    assert refused(without(name)) in (name, "sub")


# B-09, V-02: aud


@pytest.mark.parametrize(
    "aud",
    [
        ISSUER + "/", ISSUER.upper(), ISSUER + "/oauth/token", ISSUER[:-1], "https://fleet.example.evil", ISSUER + "\0", "",
        [ISSUER, "https://other.example"], [ISSUER, ISSUER], ["https://other.example"], [], [[ISSUER]], {ISSUER: 1}, None, 5, True,
    ],
)  # fmt: skip
def test_b09_aud_is_the_issuer_alone(aud: Any) -> None:
    """Only the issuer identifier, as text or a list of one, is our audience (RFC 10070)."""
    assert refused(CLAIMS | {"aud": aud}) == "aud"


def test_b09_a_list_of_one_is_the_same_audience() -> None:
    """RFC 7519 section 4.1.3 lets a single audience be a list."""
    assert verified(CLAIMS | {"aud": [ISSUER]}).issuer == DEVICE


# B-10, M-01, M-07: times are numbers

NO_NUMBERS: list[Any] = [
    str(NOW), f"{NOW}.0", "\u0661\u0662\u0663", "9_999_999_999", "", None, True, False, [NOW], {"s": NOW}, "Infinity",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
def test_b10_m01_a_time_that_is_no_number_is_refused(name: str, value: Any) -> None:
    """Text (also in other digits), booleans, null and containers are no NumericDate (RFC 7519 section 2)."""
    assert refused(CLAIMS | {name: value}) == name


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1" + b"0" * 4000])
@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
def test_b10_m07_numbers_beyond_numbers_do_not_get_that_far(name: str, literal: bytes) -> None:
    """NaN, which no comparison would ever expire, and numbers without end are no JSON to us."""
    claims = encoded(CLAIMS | {name: 123456789}).replace(b"123456789", literal)
    with pytest.raises(MalformedTokenError):
        verified(claims)


def test_b10_fractions_of_seconds_are_numbers() -> None:
    """A NumericDate may have a fraction (RFC 7519 section 2); it is cut off."""
    found = verified(CLAIMS | {"iat": NOW + 0.75, "exp": NOW + 60.5, "nbf": NOW - 0.5})
    assert (found.issued_at, found.expires_at) == (NOW, NOW + 60)


# B-11: the window


@pytest.mark.parametrize(
    ("iat", "exp", "claim"),
    [
        (NOW - 121, NOW - 60, "exp"),  # expired, with the skew used up
        (NOW + 60, NOW + 120, "iat"),  # from the future, with the skew used up
        (NOW, NOW, "exp"),
        (NOW + 1, NOW, "exp"),
        (NOW, NOW + MAX_LIFETIME + 1, "exp"),
        (NOW, NOW + 10 * 365 * 86400, "exp"),
        (NOW, 10**15, "exp"),
        (1, NOW + 60, "exp"),
        (-5, NOW + 60, "exp"),
        (-(2**63), 2**64 - 1, "exp"),
        (1e300, 1e300, "exp"),
        (0, 60, "exp"),  # a board whose clock says 1970
        (10**17, 10**17 + 60, "iat"),
    ],
)
def test_b11_m01_times_outside_the_window_are_refused(iat: float, exp: float, claim: str) -> None:
    """Expired, not yet issued, backwards, or living longer than five minutes."""
    assert refused(CLAIMS | {"iat": iat, "exp": exp}) == claim


@pytest.mark.parametrize(
    ("iat", "exp"), [(NOW - 359, NOW - 59), (NOW + 59, NOW + 359), (NOW, NOW + 1), (NOW, NOW + MAX_LIFETIME)]
)
def test_b11_times_at_the_edge_of_the_window_are_believed(iat: int, exp: int) -> None:
    """A minute of skew either way, and a life of exactly five minutes, are allowed."""
    assert verified(CLAIMS | {"iat": iat, "exp": exp}).expires_at == exp


def test_b11_nbf_counts_like_iat() -> None:
    """A statement that says it holds only later is refused until the skew reaches it."""
    assert refused(CLAIMS | {"nbf": NOW + SKEW}) == "iat"
    assert verified(CLAIMS | {"nbf": NOW + SKEW - 1}).issuer == DEVICE


def test_b11_the_same_assertion_ends() -> None:
    """What was good at NOW is refused once its life and the skew are over."""
    assert verified(now=NOW + 60 + SKEW - 1).jti == JTI
    assert refused(now=NOW + 60 + SKEW) == "exp"


# B-12, M-01: jti


@pytest.mark.parametrize(
    "jti",
    [
        None,
        "",
        "a" * 15,
        "a" * 129,
        10**18,
        ["0123456789abcdef"],
        "a" * 15 + "\0",
        "a" * 15 + " ",
        "a" * 15 + "/",
        "\u0661" * 16,
    ],
)
def test_b12_m01_jti_has_a_length_and_an_alphabet(jti: Any) -> None:
    """A replay table keeps jti, so it is 16 to 128 characters of a fixed alphabet."""
    assert refused(CLAIMS | {"jti": jti}) == "jti"


@pytest.mark.parametrize("jti", ["a" * 16, "Z" * 128, "aB09._~-aB09._~-"])
def test_b12_a_jti_within_the_limits_is_believed(jti: str) -> None:
    """Both ends of the length, and every kind of character."""
    assert verified(CLAIMS | {"jti": jti}).jti == jti


# claimed_identity


@pytest.mark.parametrize("issuer", [None, 5, [], "", "a b", "a" * 129, "'; drop table device; --", "\0"])
def test_b20_an_issuer_that_is_no_identifier_is_not_looked_up(issuer: Any) -> None:
    """What goes into a look-up is an identifier, or MalformedTokenError."""
    with pytest.raises(MalformedTokenError):
        assertion.claimed_identity(jws.parse(signed(claims=CLAIMS | {"iss": issuer})))


@pytest.mark.parametrize("kid", [5, True, [], {}, "a" * 65, "\x1b", "k\u00e9y", "a\nb"])
def test_b20_a_kid_that_is_no_label_is_not_looked_up(kid: Any) -> None:
    """A kid is at most 64 printable ASCII characters."""
    with pytest.raises(MalformedTokenError):
        assertion.claimed_identity(jws.parse(signed(HEADER | {"kid": kid})))


def test_a_missing_kid_is_none() -> None:
    """A client with one key need not name it."""
    assert assertion.claimed_identity(jws.parse(signed({"alg": "ES256"}))) == (DEVICE, None)


# Messages


def test_g01_no_refusal_repeats_the_value_it_refuses() -> None:
    """The message names the claim and the rule, never what the stranger wrote."""
    mark = "canary-4711"
    for name in ("iss", "sub", "aud", "iat", "exp", "jti", "nbf", "board", "boot", "agent"):
        with pytest.raises(InvalidAssertionError) as caught:
            verified(CLAIMS | {name: mark + "\n"})
        assert mark not in str(caught.value)
    with pytest.raises(InvalidAssertionError) as caught:
        verified(header=HEADER | {"typ": mark})
    assert mark not in str(caught.value)
