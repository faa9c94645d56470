"""Signatures and secrets of webhooks are those of Standard Webhooks."""

import base64

import pytest

from billing.alerting.webhooks import signature, target

URL = "https://host/hook"


def test_the_signature_is_that_of_the_published_example():
    """From the tests of the reference libraries at github.com/standard-webhooks."""
    key = target(URL, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").secret
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_without_the_prefix_is_taken_as_it_is():
    assert target(URL, "sixteen-or-more!").secret == b"sixteen-or-more!"


@pytest.mark.parametrize(
    "secret",
    [None, "", "fifteen-at-most", "whsec_", "whsec_no base64 at all", "whsec_" + base64.b64encode(b"x" * 15).decode()],
)
def test_a_secret_that_is_short_or_no_base64_is_refused(secret):
    with pytest.raises(ValueError, match="secret") as refused:
        target(URL, secret)
    assert not secret or secret not in str(refused.value)


def test_a_target_shows_neither_address_nor_secret():
    shown = repr(target("https://host/hook?token=topsecret", "another-top-secret"))
    assert "topsecret" not in shown
    assert "another" not in shown
