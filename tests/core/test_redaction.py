"""No secret survives redaction, in whatever way it was written; nothing else is changed."""

from __future__ import annotations

import html
import json
import urllib.parse
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable
from xml.sax.saxutils import escape as xml_escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge.core.redaction import MASK, SHORTEST, Redaction

ODD = 's3cr3t/+ "q" <é\U0001f600\\n&%20'
CHARACTERS = st.characters(codec="utf-8", exclude_characters="*")
SECRETS = st.text(CHARACTERS, min_size=SHORTEST, max_size=24).filter(lambda text: len(text.strip()) >= SHORTEST)

WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent, all": lambda text: urllib.parse.quote(text, safe=""),
    "percent, slashes left": urllib.parse.quote,
    "percent, every byte": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "percent, lower case": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()).lower(),
    "percent, Latin-1": lambda text: urllib.parse.quote(text, safe="", encoding="latin-1", errors="replace"),
    "form": urllib.parse.quote_plus,
    "percent twice": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON, solidus escaped": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[3:-3],
    "JSON, all": lambda text: "".join(f"\\u{unit:04x}" for unit in utf16(text)),
    "HTML": html.escape,
    "HTML, decimal": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML, hexadecimal": lambda text: "".join(f"&#X{ord(char):X};" for char in text),
    "HTML twice": lambda text: html.escape(html.escape(text)),
    "XML": xml_escape,
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, capitals": lambda text: text.encode().hex().upper(),
    "hexadecimal, colons": lambda text: text.encode().hex(":"),
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64, in lines": lambda text: encodebytes(text.encode() * 9).decode().rstrip(),
    "base64url": lambda text: urlsafe_b64encode(text.encode()).decode(),
    "base64url, unpadded": lambda text: urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 in a form": lambda text: urllib.parse.quote_plus(b64encode(text.encode()).decode()),
    "base64 in JSON": lambda text: b64encode(text.encode()).decode().replace("/", "\\/"),
    "mistaken for Latin-1": lambda text: text.encode().decode("latin-1"),
}


def utf16(text: str) -> list[int]:
    data = text.encode("utf-16-be")
    return [data[at] * 256 + data[at + 1] for at in range(0, len(data), 2)]


in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@in_every_way
@settings(max_examples=20)
@given(secret=SECRETS)
def test_a_secret_is_taken_out_however_it_is_written(way: Callable[[str], str], secret: str) -> None:
    written = way(secret.strip())
    shown = Redaction([secret]).text(f"([{written}])")
    assert written not in shown
    assert MASK in shown
    assert set(shown) <= set("([])*\n")  # the last is base64's, which is broken into lines


@in_every_way
def test_an_odd_secret_is_taken_out_of_json_and_json_it_stays(way: Callable[[str], str]) -> None:
    value = {"before": way(ODD), way(ODD): [f"a{way(ODD)}b"], "n": 1}
    shown = json.loads(Redaction([ODD]).json(json.dumps(value).encode()))
    _, name, _ = shown
    assert set(name) <= set("*\n")
    assert set("".join([shown["before"], *shown[name]])) <= set("ab*\n")
    assert shown["n"] == 1


@settings(max_examples=50)
@given(
    secret=SECRETS,
    before=st.binary(max_size=7),
    after=st.binary(max_size=7),
    encode=st.sampled_from([b64encode, urlsafe_b64encode]),
)
def test_base64_gives_nothing_away_at_any_alignment(
    secret: str, before: bytes, after: bytes, encode: Callable[[bytes], bytes]
) -> None:
    data = secret.strip().encode()
    whole = encode(before + data + after).decode()
    shown = Redaction([secret]).text(whole)
    # What is left holds no bit of the secret: the digits that lie in the neighbours alone.
    first, last = 8 * len(before) // 6, -(-8 * (len(before) + len(data)) // 6)
    assert shown.startswith(MASK) or shown.partition(MASK)[0] in whole[:first]
    assert MASK in shown
    assert shown.rpartition(MASK)[2] in whole[last:]


@given(st.lists(SECRETS, min_size=1, max_size=4), st.text(CHARACTERS, max_size=5))
def test_of_several_secrets_none_is_left_and_the_longest_goes_first(secrets: list[str], joint: str) -> None:
    shown = Redaction(secrets).text(joint.join(secrets))
    assert not [secret for secret in secrets if secret in shown]


def test_where_secrets_overlap_no_end_of_one_is_left() -> None:
    assert Redaction(["abcdef", "defghi", "cde"]).text("xabcdefghix") == f"x{MASK}x"
    assert Redaction(["abab"]).text("-ababab-") == f"-{MASK}-"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("xyz "),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("xyz"), inner),
    )
)
def test_json_without_a_secret_stays_as_it_is(value: object) -> None:
    text = json.dumps(value).encode()
    assert Redaction(["secret", 'a"b', "7,"]).json(text) == text


def test_numbers_stay_exact() -> None:
    text = b'{"a": 123456789012345678901234567890.10, "b": 1E400, "c": -0.0}'
    assert Redaction(["secret"]).json(text) == text


def test_a_secret_that_is_a_number_is_found_as_a_number() -> None:
    assert Redaction([12345678]).json(b'[12345678, "12345678", 912345678.5, 1234567]') == (
        b'["********", "********", "********", 1234567]'
    )
    assert Redaction(["0123"]).json(b'["a0123b"]') == b'["a********b"]'


@pytest.mark.parametrize("secret", ['"', '",', '":"x', "\\", '\\"', "],[", '","b":"'])
@given(st.lists(st.text('",:[]\\xb'), max_size=6))
def test_json_stays_json_whatever_the_secret_looks_like(secret: str, values: list[str]) -> None:
    shown = json.loads(Redaction([secret]).json(json.dumps(values).encode()))
    assert len(shown) == len(values)


def test_half_a_surrogate_pair_is_no_obstacle() -> None:
    assert Redaction(["secret"]).json(b'["\\ud800", "secret"]') == b'["\\ud800", "********"]'


@pytest.mark.parametrize("short", ["7", "ab", "a/b", 42])
def test_what_is_short_is_taken_out_only_as_a_whole_value(short: str | int) -> None:
    redaction = Redaction([short])
    assert redaction.text(str(short)) == MASK
    assert redaction.text(f"Bearer {short}") == f"Bearer {MASK}"
    assert redaction.text(f"x{short}x and 7ab42x") == f"x{short}x and 7ab42x"
    encoded = urllib.parse.quote(str(short), safe="")
    assert redaction.url(f"https://bureau.test/{encoded}x?a={encoded}&b=x{encoded}") == (
        f"https://bureau.test/{encoded}x?a={MASK}&b=x{encoded}"
    )
    basic = b64encode(str(short).encode()).decode()
    assert redaction.text(basic) == MASK


def test_a_short_secret_is_a_whole_value_of_json_too() -> None:
    assert Redaction(["ab", 42]).json(b'{"ab": ["abc", "ab", 42, 421]}') == b'{"********": ["abc", "********", "********", 421]}'


def test_a_url_is_looked_at_whole_and_in_parts() -> None:
    url = "https://bureau.test/v1/k%2Fey%2bsecret/x?token=ab&q=k/ey%2Bsecret&other=1"
    assert Redaction(["k/ey+secret", "ab"]).url(url) == f"https://bureau.test/v1/{MASK}/x?token={MASK}&q={MASK}&other=1"


def test_a_host_name_is_found_as_the_url_has_it() -> None:
    assert Redaction(["Büro.Test"]).url("https://xn--bro-hoa.test/x") == f"https://{MASK}/x"


@pytest.mark.parametrize("value", [True, False, None, "", "  "])
def test_what_hides_nothing_is_left(value: object) -> None:
    assert Redaction([value]).text("true false null") == "true false null"


def test_the_lines_of_a_key_are_secrets_each() -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "MIGHAgEAMBMGByqGSM49AgEG", "CCqGSM49AwEHBG0wawIBAQQg", "-----END PRIVATE KEY-----"]
    shown = Redaction(["\n".join(lines)]).text(" | ".join(lines))
    assert shown == " | ".join([MASK] * len(lines))
