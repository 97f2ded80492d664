"""Retrieval: nothing of a document is lost, BM25 is its formula, and what is found fills the window."""

import math
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from test_prompts import READABLE, readable_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from liftlab.documents import Document, Question
from liftlab.pretraining import word_tokenizer
from liftlab.prompts import PLAIN, SEPARATOR, encode_prompt, put, style
from liftlab.retrieval import Passages
from liftlab.worlds import register

TOKENIZER = word_tokenizer()
WORDS = ["Ada", "lives", "in", "Oslo", ".", "!", "7", "(", "\n", "ein", "Ä"]
quick = settings(derandomize=True, max_examples=40, deadline=None, database=None,
                 suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
TEXT = some.one_of(
    some.lists(some.sampled_from(WORDS), min_size=1, max_size=80).map(" ".join),
    some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60),
).filter(lambda text: bool(text.strip()))


def byte_tokenizer():
    """As those of the published models: white space begins a token, and a rare character is several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([register(0, 400).text], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=made)


BYTES = byte_tokenizer()
RAW = style("plain_raw")


def bm25(passages, question, k1=1.5, b=0.75):
    """Lucene's BM25 as https://arxiv.org/abs/2407.03618 writes it, passage by passage."""
    told = [re.findall(r"\w+", passage.lower()) for passage in passages]
    mean = sum(map(len, told)) / len(told)
    scores = [0.0] * len(told)
    for word in re.findall(r"\w+", question.lower()):
        holding = sum(word in words for words in told)
        rarity = math.log(1 + (len(told) - holding + 0.5) / (holding + 0.5))
        for place, words in enumerate(told):
            count = Counter(words)[word]
            scores[place] += rarity * count / (count + k1 * (1 - b + b * len(words) / mean)) if count else 0.0
    return scores


def context_of(passages, document, question, numbers, worded):
    """The prompt's text with the passages of these numbers, dots where one is left out between two."""
    runs = [[]]
    for number in numbers:
        if runs[-1] and runs[-1][-1] != number - 1:
            runs.append([])
        runs[-1].append(number)
    told = ["".join(document.text[slice(*passages.spans[n])] for n in run).strip() for run in runs]
    return worded.text(question.text, document.title, "\n...\n".join(told))


def length(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def texts_of(passages, document):
    return [document.text[start:end] for start, end in passages.spans]


@quick
@given(TEXT, some.integers(1, 30), some.sampled_from([TOKENIZER, READABLE, BYTES]))
def test_the_passages_joined_are_the_text(text, passage_tokens, tokenizer):
    document = Document("d", text)
    passages = Passages(tokenizer, document, passage_tokens)
    pieces = texts_of(passages, document)
    assert "".join(pieces) == text and all(pieces)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for start, end in passages.spans:
        begun = [s for s, _ in offsets if start <= s < end]
        assert len(begun) <= passage_tokens or len(set(begun)) == 1  # one character of many tokens
        assert not any(start < s < end < e for s, e in offsets)  # no token is cut


@pytest.mark.parametrize("passage_tokens", [40, 64, 100])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES])
def test_passages_of_a_register_end_with_sentences_and_are_as_long_as_they_may(passage_tokens, tokenizer):
    document = register(4, 400)
    pieces = texts_of(Passages(tokenizer, document, passage_tokens), document)
    assert len(pieces) > 3 and all(piece.rstrip().endswith(".") for piece in pieces)
    for piece, following in pairwise(pieces):
        longer = piece + following.split(".")[0] + "."
        assert length(tokenizer, piece.rstrip()) <= passage_tokens < length(tokenizer, longer)


def test_a_sentence_longer_than_a_passage_is_cut_at_tokens():
    document = Document("d", "Ada lives in Oslo and Anna lives in Rome . Ada works .")
    assert texts_of(Passages(TOKENIZER, document, 4), document) == [
        "Ada lives in Oslo ", "and Anna lives in ", "Rome . ", "Ada works .",
    ]  # fmt: skip


def test_a_character_of_several_tokens_is_not_cut():
    document = Document("d", "ab🙂🙂c")
    assert len(BYTES("🙂", add_special_tokens=False)["input_ids"]) == 4
    for passage_tokens in (1, 2, 3, 4):
        assert texts_of(Passages(BYTES, document, passage_tokens), document)[-3:-1] == ["🙂", "🙂"]


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_formula(seed):
    document = register(seed, 600)
    passages = Passages(TOKENIZER, document, 30)
    told = texts_of(passages, document)
    for question in document.questions[::7]:
        wanted = bm25(told, question.text)
        assert max(wanted) > 0
        assert passages.scores(question) == pytest.approx(wanted, rel=1e-12, abs=0)
        assert passages.ranked(question) == sorted(range(len(told)), key=lambda n: (-passages.scores(question)[n], n))


@quick
@given(TEXT, TEXT)
def test_scores_of_any_text_are_those_of_the_formula(text, question):
    document = Document("d", text)
    passages = Passages(BYTES, document, 8)
    told = texts_of(passages, document)
    wanted = bm25(told, question) if any(re.search(r"\w", piece.lower()) for piece in told) else [0.0] * len(told)
    assert passages.scores(question).tolist() == pytest.approx(wanted, rel=1e-12, abs=0)


def test_equal_scores_are_ranked_in_the_order_of_the_document():
    document = Document("d", "Ada lives here. Anna lives there. Ada lives here. Anna lives there.")
    passages = Passages(TOKENIZER, document, 4)
    assert passages.ranked("Where does Anna live?") == [1, 3, 0, 2]
    for unknown in ("Zoe?", "?!", ""):  # a word that the document has not, no word, nothing
        assert passages.ranked(unknown) == [0, 1, 2, 3] and not passages.scores(unknown).any()
    assert Passages(BYTES, Document("d", "?!?!?!"), 2).ranked("Ada?") == [0, 1, 2]


@quick
@given(some.integers(0, 5), some.integers(40, 200), some.integers(4, 30), some.integers(1, 12),
       some.sampled_from([(TOKENIZER, PLAIN), (BYTES, RAW)]))  # fmt: skip
def test_a_prompt_fits_and_holds_the_best_passages(seed, window, passage_tokens, answer_tokens, asking):
    tokenizer, worded = asking
    document = register(seed, 300)
    question = document.questions[seed]
    passages = Passages(tokenizer, document, passage_tokens)
    try:
        prompt, chosen = passages.fit(question, window, answer_tokens, worded)
    except ValueError as error:
        assert "the question takes" in str(error)
        chosen = ()
    else:
        assert prompt == passages.put(question, window, answer_tokens, worded) and len(prompt) <= window - answer_tokens
        assert prompt == encode_prompt(tokenizer, context_of(passages, document, question, chosen, worded), worded)
    ranked = passages.ranked(question)
    assert list(chosen) == sorted(ranked[: len(chosen)]) and len(chosen) < len(ranked)
    longer = context_of(passages, document, question, sorted(ranked[: len(chosen) + 1]), worded)
    assert len(encode_prompt(tokenizer, longer, worded)) > window - answer_tokens


def test_passages_stand_in_the_order_of_the_document_with_dots_where_some_are_left_out():
    text = "Cy lives in Rome. Bo sings. Ada lives in Oslo. Dan is here. Anna walks."
    document, question = Document("d", text, "T"), "Does Anna live in Oslo? Is Rome where Dan is?"
    tokenizer = readable_tokenizer("\n" + SEPARATOR, text, question)
    passages = Passages(tokenizer, document, 5)
    assert passages.ranked(question) == [3, 0, 2, 4, 1]
    told = {  # window, the tokens of the prompt and the answer: the context
        21: "Dan is here.",
        29: "Cy lives in Rome.\n...\nDan is here.",
        34: "Cy lives in Rome.\n...\nAda lives in Oslo. Dan is here.",
    }
    for window, context in told.items():
        ids = passages.put(Question(question, "no"), window, 4, RAW)
        assert ids == encode_prompt(tokenizer, RAW.text(question, "T", context), RAW) and len(ids) == window - 4
    whole, chosen = passages.fit(question, 100, 4, RAW)
    assert whole == put(tokenizer, document, question, "full", 100, 4, RAW) and chosen == (0, 1, 2, 3, 4)


def test_evidence_is_nearly_always_among_the_passages():
    """Names and relations are words of the question, so that word search finds most facts of a register."""
    found = asked = 0
    for seed in range(6):
        document = register(seed, 1000)
        passages = Passages(TOKENIZER, document, 24)
        for question in document.asked("held_out")[seed::10]:
            _, chosen = passages.fit(question, 256, 8)
            spans = [passages.spans[number] for number in chosen]
            found += any(start <= question.evidence[0] and question.evidence[1] <= end for start, end in spans)
            asked += 1
    assert asked > 100
    assert found / asked > 0.9


@pytest.mark.parametrize("passage_tokens", [0, -3, 2.0, True, "8", None])
def test_a_passage_has_at_least_a_token(passage_tokens):
    with pytest.raises(ValueError, match="passage_tokens = .*: a passage has 1 token or more, give a whole number"):
        Passages(TOKENIZER, register(0, 50), passage_tokens)


def test_what_does_not_fit_is_refused():
    passages = Passages(TOKENIZER, register(0, 200), 60)
    with pytest.raises(ValueError, match="takes 23 tokens and the answer 8, the window is 16 tokens: ask a shorter"):
        passages.put("Where " * 20, 16, 8)
    with pytest.raises(ValueError, match=r"with the best passage and the answer 8, .*make passage_tokens smaller"):
        passages.put("Where does Ada live ?", 40, 8)
    assert passages.put("Where does Ada live ?", 80, 8)
