"""choices.py: letters as models write them, and None if there is none."""

import pytest

from himtok_plugin.metrics.choices import ChoiceMetrics, choice_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b. ", "B"),
        ("(C)", "C"),
        ("D. the dog on the left", "D"),
        ("A: a dog", "A"),
        ("The answer is B.", "B"),
        ("answer: (c)", "C"),
        ("I would choose option D because it is red", "D"),
        ("It is the dog (B)", "B"),
        ("It must be C", "C"),
        ("A dog on a lawn", None),
        ("The answer is a dog.", None),
        ("It is B or C", None),
        ("I see nothing", None),
        ("b. dog", "B"),
        ("b) dog", "B"),
        ("a: a dog", "A"),
        ("a dog", None),
        ("option b", "B"),
        ("Option b because it is red", "B"),
        ("the answer is a", "A"),
        ("it is the dog (b)", "B"),
        ("the dog(s)", None),
        ("e.g. a dog", None),
        ("U.S. flag", None),
        ("B, a dog", "B"),
        ("B. dog or a cat", "B"),
        ("B. Vitamin C", "B"),
        ("B because C is wrong", "B"),
        ("B or C", None),
        ("A or B", None),
        ("A. or B.", None),
        ("b or c", None),
        ("A, B and C", None),
        ("B/C", None),
        ("(A) or (B)", None),
        ("The answer is B or C.", None),
        ("Option b or option c", None),
        ("B. dog C. cat", None),
        ("", None),
    ],
)
def test_a_letter_is_read_or_nothing(text, letter):
    assert choice_letter(text) == letter


def test_accuracy_counts_answers_without_a_letter_as_wrong_and_merges():
    whole, parts = ChoiceMetrics(), [ChoiceMetrics(), ChoiceMetrics()]
    for i, (answer, target) in enumerate([("B", "B. dog"), ("(a)", "A"), ("C", "D"), ("A dog", "A")]):
        right = whole.update(answer, target)
        assert right == parts[i % 2].update(answer, target) == (i < 2)
    assert whole.compute() == {"accuracy": 0.5, "samples": 4, "unreadable": 1}
    assert parts[0].merge(parts[1]).compute() == whole.compute()
    assert ChoiceMetrics().compute()["accuracy"] is None and len(whole) == 4


def test_a_target_without_a_letter_is_refused():
    with pytest.raises(ValueError, match="target: got 'the dog', expected a letter"):
        ChoiceMetrics().update("A", "the dog")
