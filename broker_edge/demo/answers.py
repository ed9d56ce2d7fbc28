"""What the sample bureau knows: a score, a catalogue, a company register and a notice, all deterministic.

Each function returns the body as bytes, padded to about `size` bytes where that is more than the answer itself.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from xml.sax.saxutils import escape, quoteattr

PAGES = 5
ROWS = 20
SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
REGISTRY = "urn:example:registry"

# Each name holds what CSV writers get wrong: a comma, quotes, a line break, accents, blanks at the ends, nothing at all.
PRODUCTS = ("Valve, brass", 'Hose 3/4"', "Pump\n(two lines)", "Válvula de retenção", " Gasket ", "", "Filter; fine", "Seal")
COMPANIES = ("Padaria São João Ltda.", "Café Conceição & Filhos", "Müller Comércio de Peças S.A.", "Óptica Três Irmãos ME")
CITIES = (("Florianópolis", "SC"), ("São Paulo", "SP"), ("Belém", "PA"), ("Brasília", "DF"))
PARTNERS = ("José Conceição", "Inês Müller", "Antônio Gonçalves", "Zoë Araújo")


def _number(text: str) -> int:
    """128 stable bits for `text`: the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest())


def score(tax_id: str, size: int = 0) -> bytes:
    """JSON: the tax id as it came, a score of 0 to 1000, and `ledger_id`, an integer of exactly 30 digits."""
    number = _number(tax_id)
    points = number % 1001
    answer: dict[str, object] = {
        "tax_id": tax_id,
        "score": points,
        "band": "EDCBA"[min(points // 200, 4)],
        "default_probability": round(1 - points / 1000, 3),
        "ledger_id": 10**29 + number % (9 * 10**29),
        "restrictions": [],
    }
    bare = len(json.dumps(answer))
    if size > bare:
        answer["padding"] = "x" * max(0, size - bare - len(', "padding": ""'))
    return json.dumps(answer).encode()


def catalogue(page: int = 1, size: int = 0) -> bytes:
    """CSV as RFC 4180 has it, CRLF and quotes where needed: 20 rows a page, the header alone after the fifth."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("sku", "name", "price", "available"))
    first = (page - 1) * ROWS
    for row in range(first, first + ROWS if page <= PAGES else first):
        writer.writerow(
            (f"{row + 1:05}", PRODUCTS[row % len(PRODUCTS)], f"{(row * 37 % 500) / 10:.2f}", "yes" if row % 3 else "no")
        )
    while text.tell() < size:
        writer.writerow(("00000", "padding", "0.00", "no"))
    return text.getvalue().encode()


def company(tax_id: str, size: int = 0) -> bytes:
    """SOAP 1.1 in ISO-8859-1, named by the prolog alone: namespaces, attributes, repeated children, accents."""
    number = _number(tax_id)
    city, state = CITIES[number % len(CITIES)]
    share = 50 + number % 40
    partners = zip((PARTNERS[number % 2], PARTNERS[2 + number % 2]), (share, 100 - share), strict=True)
    lines = [
        f'<reg:company xmlns:reg="{REGISTRY}" reg:id={quoteattr(tax_id)} status="active">',
        f"  <reg:name>{escape(COMPANIES[number % len(COMPANIES)])}</reg:name>",
        f'  <reg:address city="{city}" state="{state}">Rua das Acácias, {number % 900 + 1}</reg:address>',
        *(f'  <reg:partner share="{part}">{name}</reg:partner>' for name, part in partners),
        "</reg:company>",
    ]
    bare = _envelope("\n".join(lines))
    if size > len(bare):
        lines.insert(-1, f"  <reg:padding>{'x' * (size - len(bare))}</reg:padding>")
    return _envelope("\n".join(lines))


def fault(sentence: str) -> bytes:
    """A SOAP 1.1 fault that blames the caller (section 4.4)."""
    return _envelope(f"<soap:Fault><faultcode>soap:Client</faultcode><faultstring>{escape(sentence)}</faultstring></soap:Fault>")


def _envelope(content: str) -> bytes:
    text = (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n'
        f'<soap:Envelope xmlns:soap="{SOAP}">\n<soap:Body>\n{content}\n</soap:Body>\n</soap:Envelope>\n'
    )
    return text.encode("iso-8859-1", "xmlcharrefreplace")


def notice(size: int = 0) -> bytes:
    """Plain text in UTF-8 that no other character set reads the same."""
    text = "Aviso: o serviço de pontuação estará disponível das 8h às 18h — até amanhã. ✓\n".encode()
    return text + b"." * max(0, size - len(text))
