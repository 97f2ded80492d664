import torch

from liftlab.branches import REGISTER, batch_of
from liftlab.examples import IGNORED
from liftlab.pretraining import (
    WINDOW_TOKENS,
    Schedule,
    _draw,
    _rate,
    answered_right,
    loss,
    micro_config,
    word_tokenizer,
)
from liftlab.prompts import put
from liftlab.worlds import register

TOKENIZER = word_tokenizer()
DOCUMENT = register(0, 60)
QUESTIONS = DOCUMENT.asked()[:4]


def test_a_branch_is_the_prompt_that_will_be_asked():
    batch = batch_of(TOKENIZER, [DOCUMENT, None], [QUESTIONS, QUESTIONS])
    for row, context in ((0, "full"), (1, "none")):
        for branch, question in enumerate(QUESTIONS):
            kept = (batch.branch[row] == REGISTER) | (batch.branch[row] == branch)
            prompt = put(TOKENIZER, DOCUMENT, question, context, WINDOW_TOKENS, 8)
            assert batch.ids[row][kept].tolist() == [*prompt, *TOKENIZER(f"{question.answer} <|end|>")["input_ids"]]
            assert batch.positions[row][kept].tolist() == list(range(len(prompt) + 2))
            labels = batch.labels[row][kept]
            assert labels[labels != IGNORED].tolist() == TOKENIZER(f"{question.answer} <|end|>")["input_ids"]


def test_branches_answer_as_if_each_were_alone(tiny):
    """Packed or alone, padded or not, the same logits to 1e-5: no branch sees another."""
    batch = batch_of(TOKENIZER, [DOCUMENT, register(1, 40)], [QUESTIONS, register(1, 40).asked()[:2]])
    with torch.no_grad():
        packed = tiny.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).logits
        for (row, token), question in zip(batch.answers, QUESTIONS, strict=False):
            prompt = put(TOKENIZER, DOCUMENT, question, "full", WINDOW_TOKENS, 8)
            alone = tiny.model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(packed[row, token], alone, atol=1e-5, rtol=1e-5)


def test_guided_places_are_what_they_say():
    batch = batch_of(TOKENIZER, [DOCUMENT], [QUESTIONS])
    words = TOKENIZER.convert_ids_to_tokens(batch.ids[0].tolist())
    for (_, stop, value), question in zip(batch.guides["value"], QUESTIONS, strict=True):
        assert words[stop] == "." and words[value] == question.answer
    for _, asking, stop in batch.guides["evidence"]:
        assert words[asking] == "<|assistant|>" and words[stop] == "."
    assert all(words[subject] in DOCUMENT.text for _, _, subject in batch.guides["subject"])


def test_loss_without_extras_is_the_answers_cross_entropy(tiny):
    batch = batch_of(TOKENIZER, [DOCUMENT], [QUESTIONS])
    with torch.no_grad():
        total = loss(tiny.model, batch, guidance=0.0, language=0.0)
        logits = tiny.model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits[0]
    scored = [(t, int(label)) for t, label in enumerate(batch.labels[0]) if label != IGNORED]
    expected = -sum(float(logits[t].double().log_softmax(-1)[label]) for t, label in scored) / len(scored)
    assert abs(float(total) - expected) < 1e-5


def test_a_register_and_a_question_fit_the_window():
    import random

    documents, asked = _draw(random.Random(0), Schedule(registers=40, closed_book=0.0), 232)
    for document, questions in zip(documents, asked, strict=True):
        assert all(put(TOKENIZER, document, q, "full", WINDOW_TOKENS, 2) for q in questions)


def test_the_rate_warms_up_stays_and_falls_to_nearly_nothing():
    schedule = Schedule(steps=1000)
    rates = [_rate(schedule, step, step / 1000) for step in range(1, 1001)]
    assert rates[0] == 1 / 50 and max(rates) == 1.0 and rates[-1] == 0.01
    assert rates[49:] == sorted(rates[49:], reverse=True)


def test_the_shipped_shape_has_about_a_million_weights():
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(micro_config(len(TOKENIZER)))
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_500_000


def test_right_answers_are_counted_as_generation_would_give_them(tiny):
    from liftlab.answering import answer
    from liftlab.scoring import exact_match

    right = answered_right(tiny.model, [DOCUMENT], [list(QUESTIONS)], closed=False)
    said = answer(tiny, DOCUMENT, QUESTIONS, "full", answer_tokens=1)
    assert right == [bool(exact_match(text, q.answer)) for text, q in zip(said, QUESTIONS, strict=True)]
