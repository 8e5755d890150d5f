"""Enrollment tokens and settings in the pages: what shows a secret is made once, and nothing is taken away by one click."""

from __future__ import annotations

import re
import time

import pytest

from fleet.browser import Browser
from pi_agent.fleet import access
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import EnrollmentToken, Operator, OperatorToken, RememberedAnswer, Webhook

ME = Actor("me", "test")
FORMS = {
    "enrollment": ("/enrollment", {"uses": "1", "ttl": "1 day", "serial": ""}, EnrollmentToken),
    "token": ("/settings", {"what": "token", "name": "alice", "role": "reader", "note": "nightly"}, OperatorToken),
    "webhook": ("/settings", {"what": "webhook", "url": "https://hooks.example/x"}, Webhook),
}


@pytest.mark.parametrize("name", FORMS)
def test_f5_makes_no_second_secret(browser: Browser, name: str) -> None:
    """The browser sends the same form again: nothing is made, and the page says what became of the first."""
    path, fields, model = FORMS[name]
    page = browser.get(path).body.decode()
    assert browser.post(path, **fields).status == 200
    secret = re.search(r"Shown once.*?<code>([^<]+)</code>", browser.page, re.DOTALL)
    assert secret is not None
    after, browser.page = browser.page, page
    assert browser.post(path, **fields).status == 409
    assert "sent before" in browser.page and secret[1] not in browser.page
    assert model._default_manager.count() == 1
    if name != "webhook":  # the next page has a form of its own; of one address there is one webhook
        browser.page = after
        assert browser.post(path, **fields).status == 200
        assert model._default_manager.count() == 2


def test_what_was_sent_before_is_remembered_without_a_secret(browser: Browser) -> None:
    """A digest of the form and nothing of the answer; and no longer than a day."""
    RememberedAnswer.objects.create(actor="old", key="old", request_hash="", status=200, body="", created_at=1)
    browser.get("/enrollment")
    browser.post("/enrollment", uses="1", ttl="1 day")
    made = re.search(r"Shown once.*?<code>([^<]+)</code>", browser.page, re.DOTALL)
    assert made is not None
    row = RememberedAnswer.objects.get()
    assert (row.actor, row.body) == ("alice", "") and made[1] not in str(vars(row))


@pytest.mark.parametrize("more", ["9999999", "0" * 30, "0" * 5000])
@pytest.mark.parametrize("name", ["uses", "end"])
def test_no_zeros_in_front_of_a_number_make_it_any_number(browser: Browser, name: str, more: str) -> None:
    """Twenty digits that mean 1, and then more: neither a token for more devices than there may be, nor our fault."""
    browser.get("/enrollment")
    assert browser.post("/enrollment", **{"uses": "1", name: f"{1:020}{more}"}).status == 400
    assert not EnrollmentToken.objects.exists()


def test_a_form_that_was_refused_can_be_sent_again(browser: Browser) -> None:
    """It has made nothing, so it is not remembered."""
    page = browser.get("/enrollment").body.decode()
    assert browser.post("/enrollment", uses="0").status == 400
    browser.page = page
    assert browser.post("/enrollment", uses="0").status == 400
    assert not RememberedAnswer.objects.exists()


def test_adding_somebody_changes_nobody(browser: Browser) -> None:
    """A name that is taken is refused, with the way to change a role; a new one is added."""
    access.set_role("bob", "admin", actor=ME, now=int(time.time()))
    browser.get("/settings")
    assert browser.post("/settings", what="add", name="bob", role="reader").status == 409
    assert "bob is an operator already: admin" in browser.page and "press Set" in browser.page
    assert browser.post("/settings", what="add", name="carol", role="reader").status == 302
    browser.get("/settings")
    assert browser.post("/settings", what="role", name="bob", role="approver").status == 302
    assert dict(Operator.objects.values_list("name", "role")) == {
        "alice": "admin",
        "bob": "approver",
        "carol": "reader",
    }


def test_nothing_is_taken_away_by_one_click(browser: Browser) -> None:
    """Removing, revoking and ending stand behind a question that opens without JavaScript."""
    for path, fields, _ in FORMS.values():
        browser.get(path)
        browser.post(path, **fields)
    seen = ""
    for path in ("/settings", "/enrollment"):
        seen += browser.get(path).body.decode()
    for name in ('value="remove"', 'value="revoke"', 'value="forget"', 'name="end"'):
        before = seen[: seen.index(name)]
        assert before.rindex("<details") > max(before.rfind("</details>"), before.rindex("<form")), name


def test_a_token_is_ended_and_f5_is_not_an_error(browser: Browser) -> None:
    """The page after it is one that was asked for, not one that answers a form."""
    browser.get("/enrollment")
    browser.post("/enrollment", uses="1")
    assert browser.post("/enrollment", end=str(EnrollmentToken.objects.get().pk)).status == 302
    assert EnrollmentToken.objects.get().uses_left == 0
