import random
import re
import string
import subprocess
import sys
from itertools import permutations

import pytest

from liftlab.documents import Question
from liftlab.scoring import (
    CHANCE,
    SCORES,
    SHORT_ANSWER_SCORES,
    TASK_SCORES,
    best,
    contains,
    coordinate,
    exact_match,
    f1,
    needle_keys,
    normalised,
    retrieval,
    score,
)

SAMPLE = "the a an Oslo oslo, (Oslo) U.S. Ada's 1,901 3 well-known - — Über it in of sea; theatre"
WORDS = [*SAMPLE.split(), "\t\n"]
PAIRWISE = [name for name in SCORES if name != "meteor"]  # that one needs a download


def texts(seed, count):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(8))) for _ in range(count)]


def reference_of(name, text):
    """A reference that the score called `name` takes, made from `text`."""
    return {"retrieval": f"Paragraph {len(text)}", "coordinate": "3,1,2", "needle_keys": f"sea;{text}"}.get(name, text)


@pytest.mark.parametrize(
    ("answer", "reference", "em", "overlap"),
    [
        ("Oslo", "oslo.", 1.0, 1.0),
        ("The baker", "a baker", 1.0, 1.0),
        ("Oslo Oslo", "Oslo", 0.0, 2 / 3),
        ("in Oslo city", "Oslo", 0.0, 0.5),
        ("", "Oslo", 0.0, 0.0),
        ("Bergen", "Oslo", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
        ("the U.S.", "US", 1.0, 1.0),  # punctuation goes without a trace
        ("Oslo-born", "Oslo born", 0.0, 0.0),  # and leaves one word, "osloborn"
        ("big red dog", "the red dog Rex", 0.0, 2 / 3),  # 2 shared of 3 and 3: precision = recall = 2/3
        ("red red dog", "red dog dog dog", 0.0, 4 / 7),  # 2 shared of 3 and 4: 2 * 2 / (3 + 4)
    ],
)
def test_hand_worked_cases(answer, reference, em, overlap):
    assert exact_match(answer, reference) == em
    assert f1(answer, reference) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("text", "said"),
    [("The  Cat,\nan owl", "cat owl"), ("Ada's", "adas"), ("a.b", "ab"), ("theatre — Ö", "theatre — ö"), ("The!", "")],
)
def test_normalisation_by_hand(text, said):
    assert normalised(text) == said


def test_normalisation_and_f1_equal_an_independent_program():
    """Character by character, and shared tokens crossed off one at a time."""

    def tokens(text):
        kept = [letter for letter in text.lower() if letter not in string.punctuation]
        parted = re.split(r"(?<!\w)(?:the|an|a)(?!\w)|\s", "".join(kept))
        return [part for part in parted if part]

    def overlap(answer, reference):
        said, left, shared = tokens(answer), tokens(reference), 0
        total = len(left)
        for word in said:
            if word in left:
                left.remove(word)
                shared += 1
        if not shared:
            return float(not said and not total)
        precision, recall = shared / len(said), shared / total
        return 2 * precision * recall / (precision + recall)

    for answer, reference in zip(texts(1, 400), texts(2, 400), strict=True):
        assert normalised(answer) == " ".join(tokens(answer))
        assert f1(answer, reference) == pytest.approx(overlap(answer, reference))


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("I think it is Oslo.", "Oslo", 1.0),
        ("An Oslo-born baker", "Oslo", 1.0),  # a mark between words parts them
        ("in the U.S. of America", "US", 1.0),  # or is nothing
        ("Oslofjord", "Oslo", 0.0),
        ("born in Oslo", "Oslo born", 0.0),  # in a row
        ("", "Oslo", 0.0),
    ],
)
def test_contains_by_hand(answer, reference, value):
    assert contains(answer, reference) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Paragraph 7", 1.0),
        ("7", 1.0),
        ("Paragraph 7 or 17", 0.5),
        ("7, 7 and 3", 2 / 3),
        ("Paragraph 70", 0.0),
        ("the seventh", 0.0),
        ("", 0.0),
    ],
)
def test_retrieval_by_hand(answer, value):
    assert retrieval(answer, "Paragraph 7") == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("2,1,3", "2,1,3", 1.0),
        ("[2, 1, 3]", "2,1,3", 1.0),
        ("The order is 2 1 3.", "2,1,3", 1.0),
        ("2 -> 1 -> 3", "2,1,3", 1.0),
        ("3,1,2", "2,1,3", 0.0),  # all of (2,1) (2,3) (1,3) turned round
        ("1,2,3", "2,1,3", 2 / 3),  # keeps (2,3) and (1,3)
        ("1,2", "2,1,3", 0.0),
        ("2,1,3,4", "2,1,3", 0.0),
        ("2,1,1", "2,1,3", 0.0),
        ("2,1,4", "2,1,3", 0.0),
        ("213", "2,1,3", 0.0),
        ("", "2,1,3", 0.0),
        ("10,2,1", "10,1,2", 2 / 3),
        ("Ada, Bruno, Carla", "Ada, Bruno, Carla", 1.0),
        ("ADA Bruno carla.", "Ada, Bruno, Carla", 1.0),
        ("['Bruno', 'Ada', 'Carla']", "Ada, Bruno, Carla", 2 / 3),
        ("Bruno → Carla → Ada", "Ada, Bruno, Carla", 1 / 3),  # keeps (Bruno, Carla)
        ("Ada, Bruno, Dora", "Ada, Bruno, Carla", 0.0),
        ("Ada, Bruno, Bruno", "Ada, Bruno, Carla", 0.0),
        ("B, A, C", "B, A, C", 1.0),  # no article
        ("World War 2; the Moon", "the Moon; World War 2", 0.0),
        ("the Moon\nWorld War 2", "the Moon; World War 2", 1.0),
    ],
)
def test_coordinate_score_by_hand(answer, reference, value):
    assert coordinate(answer, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "value"),
    [("Ada Bruno Carla", 1.0), ("Ada Bruno Carla.", 1.0), ("ada, bruno, carla", 1.0), ("Bruno Ada Carla", 2 / 3),
     ("Carla Bruno Ada", 0.0), ("Ada Bruno", 0.0), ("Ada Bruno Bruno", 0.0), ("Ada Bruno Carla Dora", 0.0),
     ("Ada Bruno Dora", 0.0), ("1901", 0.0), ("", 0.0)],
)  # fmt: skip
def test_coordinate_score_of_names_without_separators_as_registers_answer(answer, value):
    assert coordinate(answer, "Ada Bruno Carla") == pytest.approx(value)


@pytest.mark.parametrize("reference", ["2,1,3", "Ada Bruno Carla Dora"])
def test_the_chance_of_the_coordinate_score_is_the_mean_over_all_orders_of_the_right_items(reference):
    items = re.findall(r"\w+", reference)
    orders = [" ".join(order) for order in permutations(items)]
    assert sum(coordinate(order, reference) for order in orders) / len(orders) == pytest.approx(CHANCE["coordinate"])


def test_coordinate_score_of_an_order_and_of_its_reverse_add_up_to_one():
    rng = random.Random(3)
    for size in range(2, 9):
        order = rng.sample(range(size), size)
        said, turned = (", ".join(map(str, items)) for items in (order, order[::-1]))
        wanted = ",".join(map(str, rng.sample(range(size), size)))
        assert coordinate(said, wanted) + coordinate(turned, wanted) == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Eat a  sandwich and sit in\nDOLORES PARK on a sunny day.", 1.0),
        ("Sit in Dolores Park on sunny days.", 2 / 3),
        ("Eat a big sandwich", 0.0),
        ("", 0.0),
    ],
)
def test_needle_keys_by_hand(answer, value):
    assert needle_keys(answer, "eat a sandwich; Dolores Park; sunny day;") == pytest.approx(value)


@pytest.mark.parametrize("name", PAIRWISE)
def test_every_score_lies_between_0_and_1(name):
    for answer, text in zip(texts(4, 200), texts(5, 200), strict=True):
        assert 0 <= score(name)(answer, reference_of(name, text)) <= 1


@pytest.mark.parametrize("name", [name for name in PAIRWISE if "meteor" not in name])
def test_a_right_answer_scores_1_against_itself(name):
    """METEOR does not, by its definition: see test_text_overlap."""
    for text in texts(6, 100):
        right = reference_of(name, f"{text} Oslo")
        assert score(name)(right, right) == 1


def test_the_order_of_tokens_does_not_change_f1():
    rng = random.Random(7)
    for answer, reference in zip(texts(8, 100), texts(9, 100), strict=True):
        words = answer.split()
        assert f1(" ".join(rng.sample(words, len(words))), reference) == f1(answer, reference)


def test_exact_match_is_the_strictest_of_the_short_answers_scores():
    for answer, reference in zip(texts(10, 300), texts(11, 300), strict=True):
        for text in (reference, f"the {answer}!"):
            assert exact_match(answer, text) <= min(f1(answer, text), contains(answer, text)) or not normalised(answer)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_best_over_right_answers_is_the_highest_single_one_and_more_never_harm(name):
    right = [reference_of(name, text) for text in texts(12, 6)]
    for answer in texts(13, 20):
        single = [score(name)(answer, one) for one in right]
        assert best(name, answer, right) == max(single)
        assert best(name, answer, Question("?", right[0], also=tuple(right[1:]))) == max(single)
        assert best(name, answer, right[:3]) <= max(single)


def test_one_right_answer_is_enough():
    assert best("f1", "Oslo", Question("Where?", "Bergen", also=("Christiania", "Oslo"))) == 1
    assert best("f1", "Oslo", Question("Where?", "Oslo")) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: score("bleu"), "score 'bleu' is unknown: choose one of exact_match, f1, contains, rouge_l"),
        (lambda: best("f1", "Oslo", "Oslo"), "right answers 'Oslo': give a question, or a list"),
        (lambda: best("f1", "Oslo", []), r"right answers \[\]: give a question, or a list"),
        (lambda: retrieval("7", "7"), "reference '7' names no paragraph"),
        (lambda: coordinate("7", "7"), "reference '7' is no order"),
        (lambda: coordinate("1,2", "1,2,2"), "reference '1,2,2' is no order"),
        (lambda: coordinate("", "Ada"), "reference 'Ada' is no order"),
        (lambda: needle_keys("Oslo", " ; "), "reference ' ; ' has no key word"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_every_task_has_a_known_score():
    assert set(TASK_SCORES.values()) <= set(SCORES)
    assert list(SCORES)[:3] == list(SHORT_ANSWER_SCORES) == ["exact_match", "f1", "contains"]


def test_no_library_is_loaded_before_its_score_is_asked_for():
    heavy = {"torch", "transformers", "nltk", "rouge_score", "torchmetrics"}
    code = f"import sys, liftlab.scoring; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
