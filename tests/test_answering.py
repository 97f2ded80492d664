import pytest
import torch

from liftlab.answering import CONDITIONS, answer
from liftlab.documents import Document
from liftlab.prompts import put
from liftlab.worlds import register

DOCUMENT = register(0, 150)
QUESTIONS = DOCUMENT.questions[:7]


def greedy(base, prompt, tokens):
    """The plain way: one prompt, no cache, argmax over the whole sequence each time."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == base.tokenizer.eos_token_id:
            break
    return base.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("context", ["none", "truncated", "full"])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_batched_answers_are_the_plain_greedy_ones(tiny, context, batch_tokens):
    said = answer(tiny, DOCUMENT, QUESTIONS, context, answer_tokens=4, batch_tokens=batch_tokens)
    prompts = [put(tiny.tokenizer, DOCUMENT, q, context, tiny.window, 4) for q in QUESTIONS]
    assert said == [greedy(tiny, prompt, 4) for prompt in prompts]


def test_a_document_that_does_not_fit_has_no_full_answer(tiny):
    assert answer(tiny, register(0, 600), ["Where does Ada live?"], "full") == [None]


def test_closed_book_answers_do_not_depend_on_the_document(tiny):
    other = Document("other", "Nothing here.")
    assert answer(tiny, DOCUMENT, QUESTIONS, "none") == answer(tiny, other, QUESTIONS, "none")


def test_the_five_conditions():
    assert {name: (c.lifted, c.context) for name, c in CONDITIONS.items()} == {
        "closed_book": (False, "none"),
        "truncated_icl": (False, "truncated"),
        "full_icl": (False, "full"),
        "lift": (True, "none"),
        "lift_truncated_icl": (True, "truncated"),
    }
