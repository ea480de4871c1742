"""English plural forms of class names: "bowl" -> "bowls", "dining table" -> "dining tables", "person" -> "people".

Contract: `pluralize` leaves a name as it is whose plural is the same ("sheep"), that is plural already ("skis"), that
has no plural ("rice"), or that has letters beyond a to z. The rules are made for the class names of COCO, LVIS and
ADE20K. The package `inflect` makes singulars of plural names ("skis" -> "ski") and takes "bus" for a plural, so it is
not used.
"""

from __future__ import annotations

import re

# Endings of words, so that "salesperson" and "bookshelf" are covered; see `_END_OTHERWISE`.
_IRREGULAR_ENDINGS = {
    **{"person": "people", "man": "men", "child": "children", "tooth": "teeth", "foot": "feet", "mouse": "mice"},
    **{"knife": "knives", "wife": "wives", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves", "wolf": "wolves"},
    **{"half": "halves", "calf": "calves", "scarf": "scarves", "thief": "thieves", "potato": "potatoes"},
    **{"fish": "fish"},
}
_IRREGULAR_WORDS = {
    **{"goose": "geese", "ox": "oxen", "die": "dice", "louse": "lice", "elf": "elves", "axis": "axes"},
    **{"tomato": "tomatoes", "mango": "mangoes", "hero": "heroes", "mosquito": "mosquitoes", "volcano": "volcanoes"},
    **{"cactus": "cacti", "fungus": "fungi", "stomach": "stomachs", "monarch": "monarchs", "quiz": "quizzes"},
    **{"candelabrum": "candelabra"},
    # Singular in spite of the s.
    **{"gas": "gases", "lens": "lenses", "canvas": "canvases", "atlas": "atlases", "alias": "aliases"},
    **{"iris": "irises", "trellis": "trellises", "pelvis": "pelvises", "ibis": "ibises", "thermos": "thermoses"},
    **{"rhinoceros": "rhinoceroses"},
}
_END_OTHERWISE = frozenset("human german roman ottoman talisman shaman caiman specimen abdomen omen ramen".split())
# Animals with one form, and what is not counted: "all rice".
_WITHOUT_PLURAL = frozenset(
    "aircraft alcohol apparel applesauce armor asparagus background bacon bait bamboo beef bison bread broccoli "
    "butter caviar celery cereal champagne cheddar chinaware chocolate cider clothing cocoa coffee coleslaw corn "
    "cornbread cornmeal cotton cream custard cutlery deer detergent dirt dough earth elk equipment fleece flesh floss "
    "food footwear furniture garbage garlic gelatin ginger grass gravel gravy ground guacamole hair ham hay headgear "
    "honey hovercraft hummus icecream incense jam jewelry juice ketchup land laundry leather lemonade lettuce liquor "
    "luggage meat merged milk money moose mud mustard oil oregano other pantyhose paper parsley pasta petfood popcorn "
    "pork pottery poultry rice rubble salmon salsa salt sand sauce shampoo sheep shrimp silage silverware sky snow "
    "soap soil soup spacecraft spinach sportswear squid straw stuff sugar sunscreen sushi syrup tea terrain tinfoil "
    "tinsel tissue toast tofu toothpaste trash trout tuna underwear vegetation vinegar vodka wasabi water watercraft "
    "wax whiskey wine wire wood wool yogurt zucchini".split()
)
_OF = re.compile(r"^(?P<noun>.+?)(?P<rest> (?:of|with|in|on|for|to|from|without) .+)$")
_SURFACE = re.compile(r"(?:wall|floor|ceiling)-", re.IGNORECASE)  # "wall-brick" of COCO-Stuff is a wall, not bricks
_BEHIND = re.compile(r"^(?P<noun>.+?)(?P<rest>\s*[(\[].*)$")  # "bat (animal)"
_SEVERAL = re.compile(r"(\s*[,;/]\s*)")  # "sofa, couch"
_LAST_WORD = re.compile(r"^(?P<before>.*?)(?P<word>[A-Za-z]+)$", re.DOTALL)


def pluralize(name: str) -> str:
    """Return the plural of a class name, in which the noun before "of" or before parentheses changes."""
    if not name.isascii() or _SURFACE.match(name):
        return name
    alternatives = _SEVERAL.split(name)
    if len(alternatives) > 1:
        return "".join(part if i % 2 else pluralize(part) for i, part in enumerate(alternatives))
    for pattern in (_BEHIND, _OF):
        found = pattern.match(name)
        if found:
            return pluralize(found["noun"]) + found["rest"]
    found = _LAST_WORD.match(name)
    if found is None:
        return name
    word = found["word"]
    plural = _pluralize_word(word.lower())
    if plural == word.lower():
        return name
    # Only the ending differs from the word as it is written, except for mice and the like.
    shared = next((i for i, (a, b) in enumerate(zip(word.lower(), plural, strict=False)) if a != b), len(word))
    ending = plural[shared:]
    return found["before"] + word[:shared] + (ending.upper() if word.isupper() and len(word) > 3 else ending)


def other_numbers(word: str) -> set[str]:
    """The plural of a word, and every word whose plural it is: {"buses"} of "bus", {"circle"} of "circles".

    Args:
        word: in small letters; one that is no English word gives forms that no text has.
    """
    forms = {_pluralize_word(word), *(single for single in _guess_singulars(word) if _pluralize_word(single) == word)}
    return forms - {word}


def _guess_singulars(word: str) -> set[str]:
    guesses = {word.removesuffix(ending) for ending in ("s", "es")} | {word.removesuffix("ies") + "y"}
    for singular, plural in (*_IRREGULAR_ENDINGS.items(), *_IRREGULAR_WORDS.items()):
        if word.endswith(plural):
            guesses.add(word.removesuffix(plural) + singular)
    return guesses - {word}


def _pluralize_word(word: str) -> str:
    """The plural of one word in small letters."""
    if word in _IRREGULAR_WORDS:
        return _IRREGULAR_WORDS[word]
    if word in _WITHOUT_PLURAL or word in _IRREGULAR_WORDS.values() or not word.isascii() or len(word) < 2:
        return word
    if word not in _END_OTHERWISE:
        for singular, plural in _IRREGULAR_ENDINGS.items():
            if word.endswith(singular):
                return word.removesuffix(singular) + plural
            if word.endswith(plural):
                return word
    if word.endswith(("ss", "us", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("s"):
        return word  # skis, scissors, stairs, sunglasses
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
