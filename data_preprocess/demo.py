"""The demo set of data_preprocess.multiturn: short conversations of several turns, with and without a system prompt."""

from __future__ import annotations

_TERSE = "You are a helpful assistant. Answer in one short sentence."
_CLERK = "You keep the books of a small bakery. Give amounts in euros."


def _turns(*words: str, system: str | None = None) -> list[dict[str, str]]:
    """Words of user and assistant in turn."""
    roles = ("user", "assistant") * (len(words) // 2)
    spoken = [{"role": role, "content": content} for role, content in zip(roles, words, strict=True)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


CONVERSATIONS = [
    _turns(
        "What is 12 + 30?",
        "12 + 30 = 42.",
        "And twice that?",
        "Twice 42 is 84.",
    ),
    _turns(
        "Which is longer, a minute or 50 seconds?",
        "A minute: it has 60 seconds.",
        "By how much?",
        "By 10 seconds.",
        "And two minutes against 100 seconds?",
        "Two minutes are 120 seconds, so they are longer by 20 seconds.",
    ),
    _turns(
        "What does a compiler do?",
        "It turns source code into a program that the machine can run.",
        "How does an interpreter differ?",
        "It runs the source code directly, statement by statement.",
        system=_TERSE,
    ),
    _turns(
        "We sold 20 rolls at 0.50 each.",
        "That is 10.00 euros from rolls.",
        "And 5 loaves at 3.20.",
        "That is 16.00 euros from loaves, and 26.00 euros in all.",
        "Flour cost us 8.00 today. What remains?",
        "26.00 less 8.00 leaves 18.00 euros.",
        system=_CLERK,
    ),
    _turns(
        "Write a Python function that doubles a number.",
        "```python\ndef double(number):\n    return 2 * number\n```",
        "Now one that halves it.",
        "```python\ndef halve(number):\n    return number / 2\n```",
    ),
    _turns(
        "Spell the word rhythm.",
        "R-h-y-t-h-m.",
        "Which vowels are in it?",
        "None of a, e, i, o and u; the y sounds like a vowel.",
    ),
    _turns(
        "Name a planet with rings.",
        "Saturn.",
        "Another one?",
        "Uranus has rings too, though faint ones.",
        system=_TERSE,
    ),
    _turns(
        "I have three red socks and two blue ones. How many socks?",
        "Five socks.",
        "How many whole pairs of one colour?",
        "Two: one red pair and one blue pair; a red sock is left over.",
    ),
    _turns(
        "Translate 'good morning' into French.",
        "Bonjour.",
        "And 'good evening'?",
        "Bonsoir.",
        "Thank you!",
        "De rien!",
    ),
    _turns(
        "At what temperature does water boil at sea level?",
        "At 100 degrees Celsius.",
        "And on a high mountain?",
        "Lower, because the air presses less on the water.",
        system=_TERSE,
    ),
    _turns(
        "Put these in order: 7, 3, 9.",
        "3, 7, 9.",
        "Add 5 to the list.",
        "3, 5, 7, 9.",
    ),
    _turns(
        "How many legs do four spiders have?",
        "A spider has 8 legs, so four have 32.",
        "And if one of them lost a leg?",
        "Then they have 31.",
    ),
]
