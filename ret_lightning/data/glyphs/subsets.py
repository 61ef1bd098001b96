"""The subsets of the glyphs corpus and their rows: questions about a drawing, and the passages that answer them.

The seven subsets correspond to subsets of M2KR. All rank passages of the same characters with the same ids. The passages of
some subsets have an image of the character in addition to the text (`has_passage_images`).

| subset | similar to | question | positive: passage of | passages | answers |
|---|---|---|---|---|---|
| name | WIT | - | the character | text | - |
| look | IGLUE | - | the character | text and image | - |
| case | LLaVA | its upper or lower case | the other letter | text | - |
| block | OKVQA | its Unicode block | the character | text | strings |
| base | OVEN | the letter under its accent | that letter | text and image | - |
| codepoint | InfoSeek | its code point | the character | text and image | `wikidata` objects |
| value | E-VQA | its number | the character | text and image | strings |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ret_lightning.data.glyphs import passage_texts as texts
from ret_lightning.data.glyphs.fonts import FONTS, PASSAGE_FONT, image_path
from ret_lightning.errors import DataError

Row = dict[str, Any]
# The drawn characters of each font.
Drawn = Mapping[str, Collection[str]]

# Maximum number of queries per subset, to keep evaluations fast. `base` and `value` have fewer drawings.
QUERY_CAP = {"val": 140, "test": 250}
# Small subsets ask about each training drawing in several phrasings, up to about this many rows, so that all subsets have
# a similar number of training rows.
FEWEST_TRAINING_ROWS = 1500
# Minimum number of fonts of a split that draw a character.
FEWEST_FONTS = {"train": 8, "val": 1, "test": 1}


@dataclass(frozen=True)
class Kind:
    """The kind of question of a subset.

    Attributes:
        instructions: phrasings of the instruction; training samples them, validation and test use the first.
        questions: returns the phrasings of the question about a character, used like `instructions`; empty if the kind has
            no question.
        target: returns the character whose passage is the positive; None if the question does not apply to a character.
        answers: returns the answers for pseudo recall, which the passage text of the target contains; None if the subset has
            no answers.
        has_passage_images: whether the passages have an image.
    """

    instructions: tuple[str, ...]
    questions: Callable[[str], tuple[str, ...]]
    target: Callable[[str], str | None]
    answers: Callable[[str], list[str] | list[dict[str, str]]] | None
    has_passage_images: bool


def _no_question(_: str) -> tuple[str, ...]:
    return ()


def _itself(character: str) -> str:
    return character


def _case_questions(character: str) -> tuple[str, ...]:
    case = "lowercase" if character.isupper() else "uppercase"
    return (f"What is its {case} form?", f"Which is the {case} letter?", f"How is it written in {case}?")


KINDS: dict[str, Kind] = {
    "name": Kind(
        instructions=(
            "Identify the text that describes this character.",
            "Find the description of the character in the image.",
            "Which text names the character shown?",
        ),
        questions=_no_question,
        target=_itself,
        answers=None,
        has_passage_images=False,
    ),
    "look": Kind(
        instructions=(
            "Find the illustrated entry of this character.",
            "Retrieve the entry whose picture shows the same character.",
            "Which entry, with its picture, belongs to this image?",
        ),
        questions=_no_question,
        target=_itself,
        answers=None,
        has_passage_images=True,
    ),
    "case": Kind(
        instructions=(
            "Find the letter that the question asks for.",
            "Using the image, find the text of the other letter:",
            "Answer the question about the letter shown.",
        ),
        questions=_case_questions,
        target=texts.other_case,
        answers=None,
        has_passage_images=False,
    ),
    "block": Kind(
        instructions=(
            "Using the image, find the text that answers the question:",
            "Retrieve a text that helps to answer this question about the image:",
            "Obtain the text for the following question:",
        ),
        questions=lambda _: (
            "Which Unicode block is it in?",
            "To which block does it belong?",
            "What is the name of its block?",
        ),
        target=_itself,
        answers=lambda character: [texts.block(character)],
        has_passage_images=False,
    ),
    "base": Kind(
        instructions=(
            "Find the entry of the plain letter:",
            "Retrieve the illustrated entry that answers the question about the image:",
            "Which entry answers this question?",
        ),
        questions=lambda _: (
            "Which letter is it built on?",
            "What is it without its accent?",
            "Which letter carries the mark?",
        ),
        target=texts.base_letter,
        answers=None,
        has_passage_images=True,
    ),
    "codepoint": Kind(
        instructions=(
            "Look up the entry that answers the question:",
            "Retrieve the entry that tells what is asked about the image:",
            "Find the illustrated entry for this question:",
        ),
        questions=lambda _: (
            "What is its code point?",
            "Which code point does Unicode give it?",
            "At which number does Unicode list it?",
        ),
        target=_itself,
        answers=lambda character: [{"wikidata": texts.passage_id(character)}],
        has_passage_images=True,
    ),
    "value": Kind(
        instructions=(
            "Find the entry that tells the number shown:",
            "Retrieve the illustrated entry of this number:",
            "Obtain the entry that answers the inquiry alongside the image:",
        ),
        questions=lambda _: (
            "What is its value?",
            "Which number does it stand for?",
            "How much is it?",
        ),
        target=lambda character: character if texts.value(character) else None,
        answers=lambda character: [cast(str, texts.value(character))],
        has_passage_images=True,
    ),
}


def target(kind: Kind, character: str) -> str | None:
    """Return the character whose passage is the positive of a question about a character; None if the corpus has none."""
    found = kind.target(character)
    return found if found is not None and found in texts.CHARACTERS else None


def check_coverage(drawn: Drawn) -> None:
    """Check that every split draws every character in enough fonts.

    Args:
        drawn: the drawn characters of each font.

    Raises:
        DataError: if too few fonts of a split draw a character, because the fonts are not those of matplotlib.
    """
    for character in texts.CHARACTERS:
        for split, fewest in FEWEST_FONTS.items():
            count = len(_fonts_of(drawn, split, character))
            if count < fewest:
                raise DataError(
                    f"{texts.passage_id(character)}: {count} {split} fonts draw this character, but the glyphs corpus needs "
                    f"at least {fewest}; the fonts of matplotlib were changed; reinstall matplotlib with pip",
                    code="glyph-fonts-too-few",
                    character=character,
                    split=split,
                    found=count,
                    least=fewest,
                )


def training_rows(drawn: Drawn, seed: int) -> list[Row]:
    """Return the training rows of all subsets, shuffled together, so that streaming mixes the subsets.

    Args:
        drawn: the drawn characters of each font.
        seed: seed of the phrasings and of the order.
    """
    rows = []
    for name, kind in KINDS.items():
        rng = random.Random(f"{seed}/train/{name}")
        asked = [
            (character, font)
            for character in texts.CHARACTERS
            if target(kind, character)
            for font in _fonts_of(drawn, "train", character)
        ]
        repeats = max(1, round(FEWEST_TRAINING_ROWS / len(asked)))
        phrased = [
            (character, font, *phrasing)
            for character, font in asked
            for phrasing in _sample_phrasings(kind, character, repeats, rng)
        ]
        for number, (character, font, instruction, question) in enumerate(phrased):
            row = _query(name, f"{name}_train_{number:05d}", character, font, instruction, question)
            row["passage_image_path"] = _passage_image(kind, cast(str, target(kind, character)))
            rows.append(row)
    random.Random(f"{seed}/train").shuffle(rows)
    return rows


def query_rows(name: str, split: str, drawn: Drawn, seed: int) -> list[Row]:
    """Return the validation or test queries of a subset, at most `QUERY_CAP`.

    Drawings are sampled in rounds, with one font per character and round, so that the queries cover as many characters as
    possible.

    Args:
        name: name of the subset.
        split: `val` or `test`.
        drawn: the drawn characters of each font.
        seed: seed of the sample.
    """
    kind = KINDS[name]
    rng = random.Random(f"{seed}/{split}/{name}")
    fonts = {character: _fonts_of(drawn, split, character) for character in texts.CHARACTERS if target(kind, character)}
    for of_character in fonts.values():
        rng.shuffle(of_character)
    asked: list[tuple[str, str]] = []
    for turn in range(len(FONTS[split])):
        this_round = [(character, order[turn]) for character, order in fonts.items() if turn < len(order)]
        rng.shuffle(this_round)
        asked += this_round
    rows = []
    for number, (character, font) in enumerate(asked[: QUERY_CAP[split]]):
        question = next(iter(kind.questions(character)), None)
        rows.append(_query(name, f"{name}_{split}_{number:05d}", character, font, kind.instructions[0], question))
    return rows


def passage_rows(name: str) -> Iterator[Row]:
    """Yield the candidate pool of a subset for validation and test: one passage per character.

    Args:
        name: name of the subset.
    """
    for character in texts.CHARACTERS:
        yield {
            "passage_id": texts.passage_id(character),
            "passage_text": texts.passage_text(character),
            "passage_image_path": _passage_image(KINDS[name], character),
        }


def _fonts_of(drawn: Drawn, split: str, character: str) -> list[str]:
    return [font for font in FONTS[split] if character in drawn[font]]


def _query(name: str, data_id: str, character: str, font: str, instruction: str, question: str | None) -> Row:
    kind = KINDS[name]
    positive = cast(str, target(kind, character))
    return {
        "data_id": data_id,
        "subset": name,
        "instruction": instruction,
        "question": question,
        "image_path": image_path(font, character),
        "passage_id": texts.passage_id(positive),
        "passage_text": texts.passage_text(positive),
        "answer": kind.answers(positive) if kind.answers else None,
    }


def _sample_phrasings(kind: Kind, character: str, count: int, rng: random.Random) -> list[tuple[str, str | None]]:
    questions = kind.questions(character) or (None,)
    phrasings = [(instruction, question) for instruction in kind.instructions for question in questions]
    return rng.sample(phrasings, min(count, len(phrasings)))


def _passage_image(kind: Kind, character: str) -> str | None:
    return image_path(PASSAGE_FONT, character) if kind.has_passage_images else None
