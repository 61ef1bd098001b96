"""The characters of the glyphs corpus, and the passage text of each character, from the Unicode data.

No two characters look alike in any of the fonts, because a query identifies a character by its image only. Therefore these
are excluded: `l` (like `I` in sans serif), Greek and Cyrillic letters that look like Latin ones, U+00B5 (like the Greek mu),
the small Cyrillic i (like an italic `u`), Shcha (like Sha), and the mathematical variants of Delta and Sigma.
`tests/data/glyphs/test_fonts.py` measures the similarity. Zhe and Å are excluded because they do not fit the image.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijkmnopqrstuvwxyz"
    "0123456789"
    "!#$%&()+?@[]"
    "£¥€§¶©±√∞≠←→"
    "¹²³½¼¾⅓⅔⅛⅜⅝⅞"
    "ÄÇÉÊÑÖÜŠŽČ"
    "àáâäåçèéêñóôöúûüýšžčğřů"
    "ÆØæøßð"
    "ΓΔΘΛΞΠΣΦΨΩ"
    "αβγδεζηθλμξπσφχψω"
    "БДИЦЧШЪЫЭЮЯ"
    "дцчшъыэюя"
)

# First code points and names of the blocks of the characters (Blocks.txt of Unicode). `None` ends a block if the next
# block is not listed.
_BLOCKS: tuple[tuple[int, str | None], ...] = (
    (0x0000, "basic latin"),
    (0x0080, "latin-1 supplement"),
    (0x0100, "latin extended-a"),
    (0x0180, None),
    (0x0370, "greek and coptic"),
    (0x0400, "cyrillic"),
    (0x0500, None),
    (0x20A0, "currency symbols"),
    (0x20D0, None),
    (0x2150, "number forms"),
    (0x2190, "arrows"),
    (0x2200, "mathematical operators"),
    (0x2300, None),
)
_BLOCK_STARTS = [start for start, _ in _BLOCKS]

# Long names of the general categories (UAX #44, table 12) of the characters that are neither letters nor numbers.
_SYMBOL_CATEGORIES = {
    "Po": "other punctuation",
    "Ps": "open punctuation",
    "Pe": "close punctuation",
    "Sc": "currency symbol",
    "Sm": "math symbol",
    "So": "other symbol",
}

_FRACTION_SLASH = "\N{FRACTION SLASH}"


def passage_id(character: str) -> str:
    """Return the code point of a character as `U+0041`, which is the id of its passage in every subset."""
    return f"U+{ord(character):04X}"


def name(character: str) -> str:
    """Return the Unicode name of a character in lower case."""
    return unicodedata.name(character).lower()


def block(character: str) -> str:
    """Return the Unicode block of a character in lower case.

    Raises:
        ValueError: if the block is not one of those of the corpus.
    """
    found = _BLOCKS[bisect_right(_BLOCK_STARTS, ord(character)) - 1][1]
    if found is None:
        raise ValueError(f"{passage_id(character)}: expected a character of a block of the glyphs corpus")
    return found


def value(character: str) -> str | None:
    """Return the numeric value of a character with one to three decimals, such as `2.0` or `0.333`; None if it has none.

    The decimal point makes the value unique in a passage text: the digit `2` alone is part of many code points.
    """
    number = unicodedata.numeric(character, None)
    return None if number is None else str(round(number, 3))


def other_case(character: str) -> str | None:
    """Return the letter with the opposite case; None if there is no such single letter (`ß` becomes two letters)."""
    swapped = character.swapcase()
    return swapped if len(swapped) == 1 and swapped != character else None


def base_letter(character: str) -> str | None:
    """Return the base letter of a letter with one accent, by canonical decomposition; None for other characters."""
    if not character.isalpha():  # the symbol U+2260 decomposes into `=` and a stroke
        return None
    parts = unicodedata.normalize("NFD", character)
    return parts[0] if len(parts) == 2 and unicodedata.combining(parts[1]) else None


def passage_text(character: str) -> str:
    """Return the passage text of a character, at most 32 CLIP tokens: its name, code point, and further properties.

    To stay within the token limit, only symbols have a category, and the names of the other case and of the base letter do
    not contain the script.

    >>> passage_text("é")
    'latin small letter e with acute. U+00E9. latin-1 supplement. base: small letter e'
    >>> passage_text("½")
    'vulgar fraction one half. U+00BD. value 0.5. latin-1 supplement. like 1/2'
    """
    facts = [name(character), passage_id(character)]
    number, base, partner = value(character), base_letter(character), other_case(character)
    if number is not None:
        facts.append(f"value {number}")
    elif not character.isalpha():
        facts.append(_SYMBOL_CATEGORIES[unicodedata.category(character)])
    facts.append(block(character))
    if base is not None:
        facts.append(f"base: {_without_script(base)}")
    elif partner is not None:
        facts.append(f"{'uppercase' if partner.isupper() else 'lowercase'}: {_without_script(partner)}")
    if unicodedata.decomposition(character).startswith("<"):  # a compatibility form such as a fraction or a superscript
        facts.append(f"like {unicodedata.normalize('NFKD', character).replace(_FRACTION_SLASH, '/')}")
    return ". ".join(facts)


def _without_script(letter: str) -> str:
    return name(letter).partition(" ")[2]
