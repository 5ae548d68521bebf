"""What a record holds of what was asked: nothing, a masked text, or a text for the auditor alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from chatsvc.audit.facts import Result
from chatsvc.audit.log import AuditLog
from chatsvc.audit.write.contents import Contents, Unsealable, make_auditor_key, read_private, unseal
from chatsvc.audit.write.id_numbers import is_bank_card, is_iban, is_id_card, is_old_id_card
from chatsvc.audit.write.redact import redact
from chatsvc.errors import OperatorError
from tests.audit.test_log import CHAT, found

SECRET = "我的身份证是11010519491231002X, mail me at li.lei@example.cn"


@pytest.fixture
def auditor(tmp_path):
    private, public = make_auditor_key()
    (tmp_path / "auditor.pem").write_bytes(private)
    (tmp_path / "auditor.pub.pem").write_bytes(public)
    return tmp_path


def recorded(options, content):
    log = AuditLog.open(options)
    log.event(CHAT, Result("allowed", content=content))
    log.close()
    (record,) = found(options, action="chat.generate")
    return record


def test_metadata_holds_a_keyed_hash_only(options):
    record = recorded(options, SECRET)
    assert "content" not in record
    assert "content_sealed" not in record
    assert len(record["content_hmac"]) == 64


def test_redacted_holds_the_text_without_what_identifies(options):
    record = recorded(replace(options, level="redacted"), SECRET)
    assert record["content"] == "我的身份证是[id-card], mail me at [email]"


def test_sealed_is_for_the_auditor_alone(options, auditor):
    record = recorded(replace(options, level="sealed", auditor_key=auditor / "auditor.pub.pem"), SECRET)
    assert "example.cn" not in json.dumps(record)
    assert unseal(record, read_private(auditor / "auditor.pem")) == SECRET
    with pytest.raises(Unsealable):
        unseal(record, X25519PrivateKey.generate())
    with pytest.raises(Unsealable):
        unseal(record | {"log_id": "0" * 32}, read_private(auditor / "auditor.pem"))
    with pytest.raises(Unsealable):
        unseal(record | {"content_sealed": "no base64"}, read_private(auditor / "auditor.pem"))


def test_two_sealings_of_one_text_differ(auditor):
    contents = Contents("sealed", auditor / "auditor.pub.pem")
    assert contents.fields("x", "log") != contents.fields("x", "log")


def test_a_level_without_its_key_is_no_start(options, auditor, tmp_path):
    for wrong in (None, tmp_path / "none", auditor / "auditor.pem"):
        with pytest.raises(OperatorError):
            AuditLog.open(replace(options, level="sealed", auditor_key=wrong))
    (tmp_path / "text").write_text("no key")
    for wrong in (tmp_path / "text", auditor / "auditor.pub.pem"):
        with pytest.raises(OperatorError):
            read_private(wrong)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a.b+c@mail.example.com now", "write to [email] now"),
        ("ＡＢ＠ｅｘａｍｐｌｅ．ｃｏｍ", "[email]"),
        ("call 13812345678 or +86 139 1234 5678", "call [phone] or [phone]"),
        ("电话１３８１２３４５６７８。", "电话[phone]。"),
        ("office 010-12345678", "office [phone]"),
        ("+1 (415) 555-0132 please", "[phone] please"),
        ("ID 11010519491231002X, not 110105194912310021", "ID [id-card], not 110105194912310021"),
        ("card 4111 1111 1111 1111 and 4111111111111112", "card [bank-card] and 4111111111111112"),
        ("6222-0210-0112-2334-557? 6222021001122334551", "[bank-card]? 6222021001122334551"),
        ("IBAN DE89 3704 0044 0532 0130 00, DE89370400440532013001", "IBAN [iban], DE89370400440532013001"),
        ("SSN 123-45-6789", "SSN [id-number]"),
        ("旧证110105491231002，不是110105493231002", "旧证[id-card]，不是110105493231002"),
        ("护照E12345678或EA1234567；通行证H1234567801", "护照[passport]或[passport]；通行证[id-card]"),
        ("HKID A123456(3), AB987654(3)? not A123456(4)", "HKID [id-number], [id-number]? not A123456(4)"),
        ("澳门1234567(8)", "澳门[id-number]"),
        ("台湾A123456789, not A123456788", "台湾[id-number], not A123456788"),
        (
            "NRIC S1234567D F1234567N T1234567J M1234567K, S1234567E",
            "NRIC [id-number] [id-number] [id-number] [id-number], S1234567E",
        ),
        ("주민 900101-1234567, 901301-1234567", "주민 [id-number], 901301-1234567"),
        (
            "マイナンバー 1234 5678 9018, 123456789011",
            "マイナンバー [id-number], 123456789011",
        ),
        ("Aadhaar 2341 2341 2346", "Aadhaar [id-number]"),
        ("NINO AB 12 34 56 C", "NINO [id-number]"),
        ("NIR 1 84 12 76 451 089 46, 1 84 12 76 451 089 47", "NIR [id-number], 1 84 12 76 451 089 47"),
        ("DNI 12345678Z, X1234567L, 12345678A", "DNI [id-number], [id-number], 12345678A"),
        ("CF RSSMRA85T10A562S", "CF [id-number]"),
        ("CPF 529.982.247-25, 529.982.247-26, 111.111.111-11", "CPF [id-number], 529.982.247-26, 111.111.111-11"),
        ("Amex 378282246310005, 银联 6222 0210 0112 2334 557", "Amex [bank-card], 银联 [bank-card]"),
        ("GB82WEST12345698765432 FR1420041010050500013M02606", "[iban] [iban]"),
        ("客服400-123-4567，８００１２３４５６７", "客服[phone]，[phone]"),
        ("0049 30 123456, (415) 555-0132, 415.555.0132", "[phone], [phone], [phone]"),
        ("020 7946 0958 and 030/1234567", "[phone] and [phone]"),
        ("192.168.100.200, v1.26.4, 2026-11-22 12:00:00", "192.168.100.200, v1.26.4, 2026-11-22 12:00:00"),
        ("key csk_abc_0123456789abcdef ok", "key [token] ok"),
        ("use sk-abcdefghijklmnop1234", "use [token]"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [token]"),
        ("t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl", "t=[token]"),
        ("password: hunter22, then", "password: [secret], then"),
        ("我的密码是 abc123。谢谢", "我的密码是 [secret]。谢谢"),
        ("the api_key = 'abcdef'", "the api_key = '[secret]'"),
        ('{"token": "abcdef"}', '{"token": "[secret]"}'),
        ("postgresql://user:geheim@db/x", "postgresql://[secret]@db/x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[private-key]"),
        # Keys of today's services. They are put together here so that no scanner takes this file for a leak.
        ("use github_" + "pat_11ABCDEFG0abcdefghijkl_0123456789abcdefghij now", "use [token] now"),
        ("AI" + "zaSyA1234567890abcdefghijklmnopqrstuv and GOCS" + "PX-abcdefghijklmnop", "[token] and [token]"),
        ("LTAI" + "5tAbCdEfGhIjKlMnOp，AKID" + "z8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE", "[token]，[token]"),
        ("bce-v3/ALTAK" + "-abcdefghijklmnopqrstu/0123456789abcdef0123456789abcdef01234567 x", "[token] x"),
        ("sk_" + "live_4eC39HqLyjWDarjtT1 rk_" + "live_4eC39HqLyjWDarjtT1", "[token] [token]"),
        ("npm_" + "abcdefghijklmnopqrstuvwxyz0123456789", "[token]"),
        ("pypi-" + "AgEIcHlwaS5vcmcCJDAwMDAwMDAwLTAwMDAtMDAwMC0wMDAw.", "[token]."),
        ("ASIA" + "IOSFODNN7EXAMPLE", "[token]"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = [secret]"),
        ('"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG"', '"SecretAccessKey": "[secret]"'),
        ("AccountKey=abcd1234==;x", "AccountKey=[secret];x"),
        ("<SecretAccessKey>wJalrXUtnFEMI</SecretAccessKey>", "<SecretAccessKey>[secret]</SecretAccessKey>"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA== sent", "Authorization: Basic [secret] sent"),
        ("curl -u alice:geheim https://example.com", "curl -u alice:[secret] https://example.com"),
        ("a basic understanding of Basic English, basic 7777", "a basic understanding of Basic English, basic 7777"),
        ("138.1234.5678, (138)1234-5678, +86(138)12345678", "[phone], [phone], [phone]"),
        ("(010) 12345678, （０２１）6543-2100, 010.12345678", "[phone], [phone], [phone]"),
        ("(+86) 138-1234-5678, +44 (0)20 7946 0958, +49.30.123456", "[phone], [phone], [phone]"),
        ("(415)555-0132, 01.23.45.67.89, 0800 (no), 800.123.4567", "[phone], [phone], 0800 (no), [phone]"),
        ("158.200.100.20, 150.12345678, 2026.11.22", "158.200.100.20, 150.12345678, 2026.11.22"),
        ("证 110105 19491231 002X；1101 0519 4912 3100 2X", "证 [id-card]；[id-card]"),
        ("no. 5 110105-19491231-002x, 110105 19491231 0021", "no. 5 [id-card], 110105 19491231 0021"),
        ("旧证 110105 491231 002, HKID A 123456 (3)", "旧证 [id-card], HKID [id-number]"),
        ("SSN 123 45 6789, not 000-45-6789", "SSN [id-number], not 000-45-6789"),
        ("CPF 529 982 247 25, DNI 12345678 Z, S 1234567 D", "CPF [id-number], DNI [id-number], [id-number]"),
        ("주민 900101 - 1234567, Aadhaar 2341-2341-2346", "주민 [id-number], Aadhaar [id-number]"),
        ("order 20261122123456789, 3.14159265358979", "order 20261122123456789, 3.14159265358979"),
        ("What is the capital of France?", "What is the capital of France?"),
        ("", ""),
    ],
)
def test_what_is_masked_and_what_is_not(text, masked):
    assert redact(text) == masked


HOSTILE = (
    "1", "a@", "password ", "-----BEGIN PRIVATE KEY-----", "DE89 ", "1234 ", "A1", "0-", "eyJ-", "eyJaaaaa.", "csk_a",
    "csk_a ", "sk-", "sk-aaaaaaaa.", "ya29.", "github_pat_", "basic ", "basic QUFB", " -u a", " -u a:", "password=",
    "secret access key ", "+8", "(0", "+86 (", "01.", "138.1234.", "1 1-", "A 123 456 (", "://a:", "token\t", "bearer ",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_time_to_mask_a_text_grows_with_its_length(piece):
    def seconds(length):
        text, best = piece * (length // len(piece)), float("inf")
        for _ in range(3):
            start = time.thread_time()
            redact(text)
            best = min(best, time.thread_time() - start)
        return best

    # Processor time, so that a busy machine does not count. Four times the text may take four times as long; a quadratic
    # pattern takes sixteen times.
    assert seconds(32_000) < 9 * seconds(8_000) + 0.05


def test_check_digits():
    assert is_id_card("11010519491231002x")
    assert not is_id_card("110105194913310029")
    assert not is_old_id_card("660105491231002")
    assert not is_bank_card("0000000000000")
    assert not is_bank_card("79927398713")
    assert is_iban("GB82 WEST 1234 5698 7654 32")
