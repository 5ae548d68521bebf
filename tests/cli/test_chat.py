"""`chatsvc chat` against the real application, and at a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from chatsvc.cli.main import main
from chatsvc.cli.service.chat import Talk, _printable, read_events

PASSWORD = "alice's long password"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
def chat(server, password_file: Path):
    def run(*arguments: str, **more):
        options = ["chat", "--url", server.url, "--user", "alice", "--password-file", str(password_file)]
        options += ["--max-tokens", "12"]
        return CliRunner().invoke(main, [*options, *arguments], **more)

    return run


def test_one_question_is_answered(chat) -> None:
    result = chat("--once", "What is the capital of France?")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_questions_come_from_a_pipe_and_its_end_ends_it(chat) -> None:
    result = chat(input="Say yes.\n\nSay no.\n")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.strip().splitlines()) >= 2


def test_a_wrong_password_is_one_sentence(server, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the password\n")
    options = ["chat", "--url", server.url, "--user", "alice", "--password-file", str(wrong), "--once", "x"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 3
    assert "(status 401)" in result.stderr
    wrong.write_bytes(b"\xff\xfe")
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr


def test_a_service_that_is_not_there_is_one_sentence(password_file: Path) -> None:
    with socket.socket() as silent:  # bound, and nobody listens
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = ["chat", "--url", url, "--password-file", str(password_file), "--once", "x"]
        result = CliRunner().invoke(main, options)
    assert result.exit_code == 3
    assert "does not answer" in result.stderr


def test_the_password_is_asked_for(server) -> None:
    options = ["chat", "--url", server.url, "--user", "alice", "--max-tokens", "4", "--once", "Say yes."]
    assert CliRunner().invoke(main, options, input=PASSWORD + "\n").exit_code == 0


def test_an_expired_access_token_is_renewed(server) -> None:

    with httpx.Client(base_url=server.url, timeout=60) as http:
        talk = Talk(http, max_tokens=8)
        talk.log_in("alice", PASSWORD)
        talk._tokens["access_token"] = talk._tokens["access_token"][:-8] + "AAAAAAAA"
        assert "".join(talk.ask("Say yes."))
        assert talk._conversation_id


def test_after_a_cancelled_answer_the_next_question_goes_into_the_same_conversation(server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        talk = Talk(http, max_tokens=400)
        talk.log_in("alice", PASSWORD)
        story = talk.ask("Write a very long story about a lighthouse.")
        next(story)
        story.close()
        "".join(talk.ask("Say yes."))
        found = http.get(f"/conversations/{talk._conversation_id}", headers=server.headers).json()["messages"]
    said = [message["content"] for message in found if message["role"] == "user"]
    assert said == ["Write a very long story about a lighthouse.", "Say yes."]
    assert [message["complete"] for message in found][:2] == [True, False]


def test_a_terminal_is_not_commanded_by_an_answer() -> None:
    assert _printable("a\x1b[2Jb\x07\x9b1m\tc\n世界") == "a[2Jb1m\tc\n世界"


def test_a_refused_question_does_not_end_the_conversation(chat) -> None:
    result = chat(input="word " * 12_000 + "\nSay yes.\n")
    assert "(status 400)" in result.stderr
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


def test_events_are_read_as_the_standard_says() -> None:
    lines = [": keep-alive", "", 'data: {"token": "a"}', "", "event: done", "data: {}", ""]
    assert list(read_events(iter(lines))) == [("message", {"token": "a"}), ("done", {})]


def _read_until(terminal: int, text: str, timeout_s: float = 60) -> str:
    seen, deadline = "", time.monotonic() + timeout_s
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_without_a_url_it_asks_where_make_run_would_listen(server, password_file: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PORT", str(server.port))
    options = ["chat", "--user", "alice", "--password-file", str(password_file), "--max-tokens", "4", "--once", "Hi"]
    for host in ("", "127.0.0.1", "0.0.0.0"):
        monkeypatch.setenv("HOST", host)
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 0, result.output
    monkeypatch.setenv("CHATSVC_SERVER__SOCKET", str(tmp_path / "web.sock"))
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 3
    assert "web.sock does not answer" in result.stderr


def test_lines_are_edited_and_remembered_but_not_on_the_disk(server, password_file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["chat", "--url", server.url, "--user", "alice", "--password-file", str(password_file)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(HOME=str(home), TERM="xterm", PYTHON_HISTORY=str(home / "history"))
        os.chdir(home)
        os.execv(sys.executable, [sys.executable, "-m", "chatsvc.cli.main", *arguments, "--max-tokens", "4"])
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=60) as http:

        def questions() -> list[str]:
            (latest,) = http.get("/conversations?limit=1").json()["data"]
            found = http.get(f"/conversations/{latest['id']}").json()["messages"]
            return [message["content"] for message in found if message["role"] == "user"]

        try:
            _read_until(terminal, "> ")
            os.write(terminal, "Say ys, 世界x".encode() + b"\x7f" + b"\x1b[D" * 5 + b"e\r")  # back, and an e put in
            _read_until(terminal, "\n> ")
            assert questions() == ["Say yes, 世界"]
            os.write(terminal, b"\x1b[A\r")  # up
            _read_until(terminal, "\n> ")
            assert questions() == ["Say yes, 世界"] * 2
            os.write(terminal, b"\x04")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            pid = 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(terminal)
    assert list(home.iterdir()) == []


def test_at_a_terminal_ctrl_c_cancels_one_answer_and_ctrl_d_ends(server, password_file: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable,
            [
                sys.executable, "-m", "chatsvc.cli.main", "chat", "--url", server.url, "--user", "alice",
                "--password-file", str(password_file),
            ],
        )  # fmt: skip
    try:
        _read_until(terminal, "> ")
        os.write(terminal, b"Write a long story about a knight, a dragon and a library, in many words.\n")
        _read_until(terminal, "words.")
        _read_until(terminal, " ")  # the answer's first word: it quotes itself soon, and is then quickly at its end
        os.write(terminal, b"\x03")
        assert "(cancelled)" in _read_until(terminal, "> ")
        os.write(terminal, b"\x04")
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ended[0] == pid
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
