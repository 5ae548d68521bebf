"""The operational log: one JSON object a line, no secrets."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading

import pytest

from chatsvc import logs

CANARY = "canary-4d81 of a prompt"


@pytest.fixture
def written():
    """A logger of its own and what it has written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("chatsvc.test")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


def test_a_line_is_one_json_object(written):
    logger, lines = written
    logger.info("hello %s", "wörld\n{}", extra={"fields": {"status": 200, "path": "/chat\n"}})
    (line,) = lines()
    assert line["message"] == "hello wörld\n{}"
    assert (line["level"], line["logger"], line["status"], line["path"]) == ("info", "chatsvc.test", 200, "/chat\n")
    assert line["ts"].endswith("Z")


@pytest.mark.parametrize(
    "secret",
    [
        "csk_a64aa29f77ef_DN_zOEghU4tN2Y1ENnyCR-Mn03lpvF3v2tabQYUXe7I",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
        "hunter2:letmein",
    ],
)
def test_what_looks_like_a_secret_is_masked(written, secret):
    logger, lines = written
    text = f"postgresql://{secret}@db/x" if ":" in secret else f"GET /{secret} failed"
    logger.warning(text, extra={"fields": {"path": text, "more": [text, {"deep": text}]}})
    assert secret not in json.dumps(lines())
    assert logs.MASK in lines()[0]["message"]


def test_what_is_named_like_a_secret_is_masked(written):
    logger, lines = written
    logger.info(
        "x",
        extra={
            "fields": {
                "password": "a",
                "access_token": "b",
                "nested": {"client_secret": "c"},
                "prompt": "d",
                "token": None,
            }
        },
    )
    assert lines()[0] | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "logger": "chatsvc.test",
        "message": "x",
        "password": logs.MASK,
        "access_token": logs.MASK,
        "nested": {"client_secret": logs.MASK},
        "prompt": logs.MASK,
        "token": None,
    }


def test_a_traceback_is_one_value_of_the_line(written):
    logger, lines = written
    try:
        int("broken csk_abc_secret")
    except ValueError:
        logger.exception("failed")
    (line,) = lines()
    assert "ValueError" in line["traceback"]
    assert "csk_abc" not in line["traceback"]


def test_configure_sends_everything_of_ours_to_one_stream(capfd):
    root = logging.getLogger()
    hooks = logging.raiseExceptions, threading.excepthook, sys.unraisablehook
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        logs.configure("INFO", stream)
        logging.getLogger("chatsvc.anything").info("hello")
        logging.getLogger("any.library").info("noise")
        thread = threading.Thread(target=int, args=(CANARY,))
        thread.start()
        thread.join()
        logging.getLogger("chatsvc").error("%d", CANARY)  # cannot be formatted
    finally:
        root.handlers[:], root.level = before[0], before[1]
        logging.raiseExceptions, threading.excepthook, sys.unraisablehook = hooks
    told = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert told == ["hello", "a thread ended by an error"]
    assert CANARY not in stream.getvalue() + capfd.readouterr().err
