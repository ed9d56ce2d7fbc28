"""Bytes of an upstream's body to text: which character set they are in, and a strict decoding of it. Used by `formats`.

Names come from the upstream, so they are looked up in our own table first: Python's registry also answers to what is no
character set (idna, punycode, unicode_escape, utf_7, rot13, zlib), some of it with quadratic cost, and it remembers every
unknown name for ever.
"""

from __future__ import annotations

import re
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import NamedTuple

from broker_edge.errors import UpstreamError

_CODECS = frozenset(
    {
        *("ascii", "utf_8", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le", "latin_1"),
        *(f"iso8859_{part}" for part in (*range(1, 12), *range(13, 17))),
        *(f"cp{page}" for page in range(1250, 1259)),
        *(f"cp{page}" for page in (437, 720, 737, 775, 850, 852, *range(855, 859), *range(860, 867), 869, 874, 1006, 1125)),
        *("cp037", "cp273", "cp424", "cp500", "cp875", "cp1026", "cp1140"),  # EBCDIC
        *("koi8_r", "koi8_t", "koi8_u", "kz1048", "ptcp154", "tis_620", "hp_roman8"),
        *(f"mac_{script}" for script in ("arabic", "croatian", "cyrillic", "farsi", "greek", "iceland", "latin2", "roman")),
        *("mac_romanian", "mac_turkish"),
        *("big5", "big5hkscs", "gb2312", "gbk", "gb18030", "hz", "cp932", "cp949", "cp950", "johab"),
        *("euc_jp", "euc_jis_2004", "euc_jisx0213", "euc_kr", "shift_jis", "shift_jis_2004", "shift_jisx0213"),
        *("iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3", "iso2022_jp_ext", "iso2022_kr"),
    }
)
# Labels of the WHATWG Encoding Standard and of IANA that upstreams send and Python has no alias for.
_LABELS = {
    "utf_8_sig": "utf_8",
    "unicode_1_1_utf_8": "utf_8",
    "iso_10646_ucs_2": "utf_16",
    "ucs_2": "utf_16",
    "ucs_4": "utf_32",
    "iso_10646_ucs_4": "utf_32",
    "ansi_x3.4_1968": "ascii",
    "windows_31j": "cp932",
    "x_sjis": "cp932",
    "x_euc_jp": "euc_jp",
    "x_gbk": "gbk",
    "windows_874": "cp874",
    "windows_949": "cp949",
    "x_cp1250": "cp1250",
    "x_cp1251": "cp1251",
    "x_cp1252": "cp1252",
    "x_mac_roman": "mac_roman",
    "x_mac_cyrillic": "mac_cyrillic",
}
# UTF-32's little-endian mark starts with UTF-16's: the longer ones first.
_MARKS = (
    (b"\xef\xbb\xbf", "utf_8"),
    (b"\xff\xfe\x00\x00", "utf_32_le"),
    (b"\x00\x00\xfe\xff", "utf_32_be"),
    (b"\xff\xfe", "utf_16_le"),
    (b"\xfe\xff", "utf_16_be"),
)
# How "<" and "<?xm" look where they aren't ASCII (XML 1.0 appendix F.1). The codec reads the declaration; the second member
# says whether it is also the character set (EBCDIC's family only lets one read the name).
_XML_STARTS = (
    (b"<\x00\x00\x00", "utf_32_le", True),
    (b"\x00\x00\x00<", "utf_32_be", True),
    (b"<\x00", "utf_16_le", True),
    (b"\x00<", "utf_16_be", True),
    (b"\x4c\x6f\xa7\x94", "cp037", False),
)
_PARAMETER = re.compile(r""";[ \t]*([^=;,\s]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;,]*)""")
_DECLARATION = re.compile(r"""<\?xml[ \t\r\n][^>]*?encoding[ \t\r\n]*=[ \t\r\n]*["']([A-Za-z][A-Za-z0-9._:-]*)["']""")
_DECLARATION_BYTES = 1024
_WIDE = {"utf_16": 2, "utf_32": 4}


class Encoding(NamedTuple):
    """A character set, as the name of a Python codec, and the bytes that its byte-order mark takes."""

    codec: str
    mark: int


def detect(body: bytes, content_type: str | None, *, xml: bool = False) -> Encoding:
    """The character set of `body`: its byte-order mark, else the Content-Type's charset, else (`xml`) its prolog's, else UTF-8.

    Raises UpstreamError PARSE_ERROR for a name that is none (RFC 9110 section 8.3.2, RFC 7303 section 3.2).
    """
    for mark, codec in _MARKS:
        if body.startswith(mark):
            return Encoding(codec, len(mark))
    named = _charset_parameter(content_type)
    if named is not None:
        return Encoding(_byte_order(_codec(named, "The Content-Type"), body), 0)
    return Encoding(_declared(body) if xml else "utf_8", 0)


def decode(body: bytes, encoding: Encoding) -> str:
    """The text of `body` without its byte-order mark; raises UpstreamError PARSE_ERROR at the first byte that is none."""
    try:
        return str(memoryview(body)[encoding.mark :], encoding.codec)
    except UnicodeError as error:
        offset = encoding.mark + (error.start if isinstance(error, UnicodeDecodeError) else 0)
        raise UpstreamError("PARSE_ERROR", f"The body is not text in its character set: byte offset {offset}") from None


def _charset_parameter(content_type: str | None) -> str | None:
    for name, value in _PARAMETER.findall(content_type or ""):
        if name.lower() == "charset":
            return value.strip(" \t\"'") or None
    return None


def _codec(name: str, where: str) -> str:
    label = normalize_encoding(name).lower() if name.isascii() else ""
    codec = _LABELS.get(label) or aliases.get(label) or aliases.get(label.replace(".", "_")) or label
    if codec not in _CODECS:
        raise UpstreamError("PARSE_ERROR", f"{where} names a character set that is not known")
    return codec


def _byte_order(codec: str, body: bytes) -> str:
    """UTF-16 and UTF-32 without a mark: bodies begin with ASCII, whose zero bytes tell; else little-endian, as on the web."""
    width = _WIDE.get(codec)
    if width is None:
        return codec
    return f"{codec}_be" if len(body) >= width and body[0] == 0 != body[width - 1] else f"{codec}_le"


def _declared(body: bytes) -> str:
    family, certain = next(
        ((codec, certain) for start, codec, certain in _XML_STARTS if body.startswith(start)), ("latin_1", False)
    )
    if certain:
        return family
    found = _DECLARATION.match(body[:_DECLARATION_BYTES].decode(family))
    codec = _codec(found[1], "The XML declaration") if found else "utf_8"
    # A declaration that could be read byte by byte can't be in UTF-16: documents serialised from a UTF-16 string in memory say so
    # all the same, and are UTF-8 on the wire.
    return "utf_8" if codec.startswith(("utf_16", "utf_32")) else codec
