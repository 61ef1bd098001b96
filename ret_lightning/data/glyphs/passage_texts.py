"""The characters of the glyphs corpus, and the passage text of each: what Unicode says of it.

No two of the characters look alike in any of the fonts, since an image is all that a query shows. That is why these are
missing: `l` (an `I` in sans serif), Greek and Cyrillic letters drawn as Latin ones, U+00B5 (a Greek mu), the small
Cyrillic i (an italic `u`), Shcha (a Sha with a small tail), the mathematical doubles of Delta and Sigma.
`tests/data/glyphs/test_fonts.py` measures it. Zhe is missing because its widest drawing would not fit the image, and Å
because its tallest would not.
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

# First code points and names of the blocks (Unicode's Blocks.txt) from which the characters come. `None` ends a block
# whose neighbour is not listed.
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

# Unicode's long names of the general categories (UAX #44, table 12) of the characters that are neither
# letters nor numbers.
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
    """The character's code point as Unicode writes it, `U+0041`: the id of its passage in every subset."""
    return f"U+{ord(character):04X}"


def name(character: str) -> str:
    return unicodedata.name(character).lower()


def block(character: str) -> str:
    """The character's Unicode block, lower case.

    Raises:
        ValueError: a character of a block that the corpus does not use.
    """
    found = _BLOCKS[bisect_right(_BLOCK_STARTS, ord(character)) - 1][1]
    if found is None:
        raise ValueError(f"{passage_id(character)} lies in no block that glyph_texts lists")
    return found


def value(character: str) -> str | None:
    """The character's number in decimals, at most three of them and at least one: `2.0`, `0.333`; None if it has none.

    The decimal point makes it unmistakable within a passage text, where a bare `2` is in many code points.
    """
    number = unicodedata.numeric(character, None)
    return None if number is None else str(round(number, 3))


def other_case(character: str) -> str | None:
    """The letter's simple upper or lower case partner; None if it has none (`ß` becomes two letters)."""
    swapped = character.swapcase()
    return swapped if len(swapped) == 1 and swapped != character else None


def base_letter(character: str) -> str | None:
    """The letter under a letter's one accent, by canonical decomposition; None if it is no such letter."""
    if not character.isalpha():  # the sign U+2260 decomposes into `=` and a stroke
        return None
    parts = unicodedata.normalize("NFD", character)
    return parts[0] if len(parts) == 2 and unicodedata.combining(parts[1]) else None


def passage_text(character: str) -> str:
    """One passage: name, code point and what else is known, the telling facts first, at most 32 CLIP tokens in all.

    The budget is why only symbols state their category (a letter's name says capital or small, a number has its value),
    and why the names of a letter's partner or base go without the script, which is the same.

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
    if unicodedata.decomposition(character).startswith("<"):  # a compatibility form: fractions, superscripts
        facts.append(f"like {unicodedata.normalize('NFKD', character).replace(_FRACTION_SLASH, '/')}")
    return ". ".join(facts)


def _without_script(letter: str) -> str:
    return name(letter).partition(" ")[2]
