"""The whole road once: a Pi enrolls, is approved, and gets a token that a resource server can verify."""

from __future__ import annotations

import jwt

from fleet.support import ISSUER, Pi, ask, exchange, register
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device


def test_a_new_device_waits_and_then_gets_a_token(app: Application) -> None:
    """A device is pending until it is approved; its token is an RFC 9068 token under the published key."""
    pi = Pi()
    registered = register(app, pi)
    assert (registered.status, registered.json["status"]) == (201, "pending")
    waiting = ask(app, pi.form())
    assert (waiting.status, waiting.json["error"]) == (400, "authorization_pending")

    Device.objects.filter(client_id=pi.client_id).update(status="approved")
    reply = ask(app, pi.form())
    assert reply.status == 200, reply.body
    key = jwt.PyJWK(exchange(app, "GET", "/oauth/jwks").json["keys"][0])
    claims = jwt.decode(reply.json["access_token"], key, algorithms=["ES256"], audience=ISSUER, issuer=ISSUER)
    assert jwt.get_unverified_header(reply.json["access_token"])["typ"] == "at+jwt"
    assert (claims["sub"], claims["client_id"], claims["scope"]) == (pi.client_id, pi.client_id, "device")
    assert claims["board"]["serial"] == "00000000c0ffee01"
