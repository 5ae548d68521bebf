"""The table from errors to HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from werkzeug.exceptions import BadGateway, ImATeapot

from chatsvc import errors
from chatsvc.guard.principal import PUBLIC
from chatsvc.http.wire import problems
from chatsvc.http.wire.routing import requires


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest("x"), 400, "invalid_request_error"),
        (errors.ContextLengthExceeded("x"), 400, "invalid_request_error"),
        (errors.AuthenticationFailed("why"), 401, "authentication_error"),
        (errors.PermissionRefused("why"), 403, "permission_error"),
        (errors.NotFound(), 404, "not_found_error"),
        (errors.ModelNotFound(), 404, "not_found_error"),
        (errors.MethodNotAllowed(), 405, "invalid_request_error"),
        (errors.Conflict("x"), 409, "invalid_request_error"),
        (errors.BodyTooLarge(), 413, "invalid_request_error"),
        (errors.UnsupportedMediaType(), 415, "invalid_request_error"),
        (errors.LimitExceeded("x", retry_after_s=1), 429, "rate_limit_error"),
        (errors.ClientGone(), 499, "invalid_request_error"),
        (errors.Overloaded(), 503, "overloaded_error"),
        (errors.Draining(), 503, "service_unavailable"),
        (errors.EngineUnavailable(), 503, "service_unavailable"),
        (errors.AuditUnavailable(), 503, "service_unavailable"),
        (errors.StoreUnavailable(), 503, "service_unavailable"),
        (errors.DeadlineExceeded(), 503, "service_unavailable"),
        (errors.ModelRefused(), 500, "server_error"),
        (errors.ConfigurationInvalid(["x"]), 500, "server_error"),
    ],
)
def test_every_error_has_its_row(error, status, kind):
    assert problems.status_and_type(error) == (status, kind)


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0, 1), (-5, 1), (0.2, 1), (1.01, 2), (119.5, 120), (1e9, 120), (float("nan"), 120), (float("inf"), 120)],
)
def test_retry_after_is_between_1_and_120(seconds, header):
    assert problems.retry_after(seconds) == header


@pytest.fixture
def broken(bare_app):
    """The application with routes that fail in every way."""

    def add(error):
        def view():
            raise error

        bare_app._got_first_request = False
        bare_app.add_url_rule("/broken", view_func=requires(PUBLIC)(view))
        return bare_app.test_client().get("/broken")

    return add


def test_an_unexpected_error_tells_nothing_but_the_id(broken, caplog):
    answer = broken(RuntimeError("the password is hunter2"))
    assert answer.status_code == 500
    assert answer.json["error"]["type"] == "server_error"
    assert "hunter2" not in answer.text
    assert answer.headers["X-Request-Id"]
    assert any(record.exc_info for record in caplog.records)


def test_an_operators_error_on_a_route_is_a_server_error(broken, caplog):
    answer = broken(errors.ModelRefused())
    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "server_error"
    assert caplog.records


def test_limits_bring_their_headers(broken):
    answer = broken(errors.LimitExceeded("slow down", retry_after_s=7.5, headers={"x-ratelimit-limit-requests": "5"}))
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "8"
    assert answer.headers["x-ratelimit-limit-requests"] == "5"


def test_a_teapot_is_an_error_like_any_other(broken):

    answer = broken(ImATeapot())
    assert answer.status_code == 400
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_5xx_of_the_framework_is_a_server_error(broken, caplog):

    assert broken(BadGateway()).status_code == 500
    assert caplog.records


def test_the_page_of_errors_names_every_code_that_goes_over_the_wire():
    page = Path(__file__).parents[2].joinpath("docs", "reference", "errors.md").read_text(encoding="utf-8")

    def subclasses(kind):
        for each in kind.__subclasses__():
            yield each
            yield from subclasses(each)

    codes = {
        each.code
        for family in (errors.RequestError, errors.Unavailable)
        for each in (family, *subclasses(family))
        if each.code is not None and each is not errors.ClientGone
    }
    source = "".join(path.read_text(encoding="utf-8") for path in Path(problems.__file__).parent.glob("*.py"))
    codes |= set(re.findall(r'code="([a-z_]+)"', source))
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []
