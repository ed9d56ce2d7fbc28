"""No secret survives redaction, in whatever way it was written; nothing else is changed."""

from __future__ import annotations

import html
import json
import random
import string
import time
import urllib.parse
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable
from xml.sax.saxutils import escape as xml_escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge.core.disguises import SHORTEST
from broker_edge.core.redaction import MASK, MOST_SECRETS, UNSHOWN, Redaction

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
    "base64 twice": lambda text: b64encode(b64encode(text.encode())).decode(),
    "base64 of a URL": lambda text: b64encode(urllib.parse.quote(text, safe="").encode()).decode(),
    "base64 of a form": lambda text: b64encode(urllib.parse.quote_plus(text).encode()).decode(),
    "base64 of JSON": lambda text: b64encode(json.dumps(text)[1:-1].encode()).decode(),
    "base64 of UTF-16": lambda text: b64encode(text.encode("utf-16-le")).decode(),
    "hexadecimal of UTF-16": lambda text: text.encode("utf-16-le").hex(),
    "base64 of hexadecimal": lambda text: b64encode(text.encode().hex().encode()).decode(),
    "mistaken for Latin-1": lambda text: text.encode().decode("latin-1"),
}


def utf16(text: str) -> list[int]:
    data = text.encode("utf-16-be")
    return [data[at] * 256 + data[at + 1] for at in range(0, len(data), 2)]


in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@in_every_way
@settings(max_examples=20, deadline=None)
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


@settings(max_examples=50, deadline=None)
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


@settings(deadline=None)
@given(st.lists(SECRETS, min_size=1, max_size=4), st.text(CHARACTERS, max_size=5))
def test_of_several_secrets_none_is_left_and_the_longest_goes_first(secrets: list[str], joint: str) -> None:
    shown = Redaction(secrets).text(joint.join(secrets))
    assert not [secret for secret in secrets if secret in shown]


def test_where_secrets_overlap_no_end_of_one_is_left() -> None:
    assert Redaction(["abcdef", "defghi", "cde"]).text("xabcdefghix") == f"x{MASK}x"
    assert Redaction(["abab"]).text("-ababab-") == f"-{MASK}-"


@settings(deadline=None)
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
@settings(deadline=None)
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


def test_what_a_number_becomes_is_found_too() -> None:
    assert Redaction(["0012345"]).text("12345") == MASK
    assert Redaction([12345.0]).json(b'["12345", 12345]') == b'["********", "********"]'


@pytest.mark.parametrize("before", range(4))
def test_what_is_encoded_twice_is_found_at_any_alignment(before: int) -> None:
    inner = b64encode(b"x" * before + b"correct horse" + b"yz")
    for outer in (b64encode(b"q" * before + inner), b64encode(inner + b"q").rstrip(b"=")):
        shown = Redaction(["correct horse"]).text(outer.decode())
        assert MASK in shown
        assert len(shown) - len(MASK) <= len(outer) - len(b64encode(inner)) + 8


def letters(count: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=count))


def lined(text: str) -> str:
    return "\n".join(text[at : at + 64] for at in range(0, len(text), 64))


HARD: dict[str, tuple[Callable[[int], str], Callable[[int], str], int]] = {
    "a long secret": (letters, lambda _: "nothing", 8000),
    "a long key": (lambda size: lined(letters(size)), lambda _: letters(100, 1), 4000),
    "a long text": (lambda _: letters(1000), lambda size: letters(size, 1), 100_000),
    "matches that overlap": (lambda _: "a" * 1000, lambda size: "a" * size, 20_000),
    "matches that overlap otherwise": (
        lambda _: "aab" * 300 + "aa",
        lambda size: ("aab" * 300 + "aab" * 299) * (size // 1797),
        50_000,
    ),
    "matches everywhere": (lambda _: "abcd", lambda size: "abcd" * (size // 4), 10_000),
    "percent everywhere": (lambda _: "abcd", lambda size: "%61%25" * (size // 6), 50_000),
    "references everywhere": (lambda _: "abcd", lambda size: "&amp;lt;" * (size // 8), 20_000),
    "backslashes everywhere": (lambda _: "abcd", lambda size: "\\" * size, 10_000),
}


def cost(secret: str, text: str) -> float:
    """Seconds of this thread's processor, at best."""

    def once() -> float:
        begun = time.thread_time()
        redaction = Redaction([secret])
        redaction.text(text)
        redaction.json(json.dumps([text, text]).encode())
        return time.thread_time() - begun

    return min(once() for _ in range(3))


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_the_work_grows_as_the_secret_and_the_text_do(hard: tuple[Callable[[int], str], Callable[[int], str], int]) -> None:
    secret, text, size = hard
    assert cost(secret(8 * size), text(8 * size)) < 4 * 8 * cost(secret(size), text(size)) + 0.01


def test_a_secret_that_overlaps_itself_is_taken_out_whole() -> None:
    assert Redaction(["a" * 1000]).text("b" + "a" * 5001 + "b") == f"b{MASK}b"
    assert Redaction(["aabaa"]).text("-aabaaabaabaa-") == f"-{MASK}-"


def test_nothing_is_shown_of_what_would_take_too_long() -> None:
    secrets = [letters(64, seed) for seed in range(1000)]
    redaction = Redaction(secrets)
    assert redaction.json(json.dumps(letters(2**20)).encode()) == json.dumps(UNSHOWN).encode()
    assert (redaction.text("x"), redaction.url("https://bureau.test/")) == (MASK, MASK)


def test_nothing_is_shown_where_there_are_too_many_secrets() -> None:
    redaction = Redaction([letters(MOST_SECRETS), "more"])
    assert redaction.blind
    assert (redaction.text("x"), redaction.url("https://bureau.test/"), redaction.json(b"[1]")) == (
        *(MASK, MASK),
        json.dumps(UNSHOWN).encode(),
    )
