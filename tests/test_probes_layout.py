import pytest

from liftlab.documents import Document, Question
from liftlab.models import load
from liftlab.pretraining import CHAT_TEMPLATE
from liftlab.probes.layout import layout
from liftlab.prompts import STYLES, PromptStyle, put
from liftlab.worlds import register

TEXT = "Ada lives in Oslo. Where does Ada live? Anna lives in Rome."
EVIDENCE = (0, 18)
QUESTION = Question("Where does Ada live?", "Oslo", EVIDENCE)
RAW = PromptStyle("{question}", "{context}\n{question}", chat=False)


def told(tokenizer, made, chosen):
    return tokenizer.decode([i for i, c in zip(made.ids, chosen, strict=True) if c])


def of_role(tokenizer, made, role):
    return told(tokenizer, made, [r == role for r in made.roles])


WITHOUT_BOS = [style for style in STYLES.values() if not style.bos]  # the micro tokenizer has none


@pytest.mark.parametrize("style", [*WITHOUT_BOS, PromptStyle("{question}", "{context} {question}", system="Oslo")])
@pytest.mark.parametrize("context", ["none", "truncated", "full"])
@pytest.mark.parametrize("words", [60, 400])
def test_the_ids_are_those_of_the_prompt_and_the_answer_but_its_last_token(tiny, words, context, style):
    document = register(0, words)
    question = Question(document.questions[0].text, "Oslo Bern Riga", document.questions[0].evidence)
    made = layout(tiny.tokenizer, document, question, context, tiny.window, 8, style)
    prompt = put(tiny.tokenizer, document, question, context, tiny.window, 8, style)
    if prompt is None:
        assert made is None and words == 400 and context == "full"
        return
    answer = tiny.tokenizer("Oslo Bern Riga", add_special_tokens=False)["input_ids"]
    assert made.ids == prompt + answer[:-1] and len(answer) == 3
    assert len(made.ids) == len(made.roles) == len(made.evidence)
    assert [i for i, role in enumerate(made.roles) if role == "answer"] == [len(prompt) - 1 + i for i in range(3)]


def test_roles_word_for_word_with_the_question_inside_the_document_too(tiny):
    made = layout(tiny.tokenizer, Document("d", TEXT), QUESTION, "full", 256, 8)
    ask = ["question"] * 5  # Where does Ada live ?
    assert made.roles == [
        "template",
        *["document"] * 15,
        *ask,
        "template",
        "answer",
    ]  # <|user|> .. <|end|> <|assistant|>
    assert made.evidence == [False, *[True] * 5, *[False] * 17]
    assert made.evidence_place == "kept"


def test_the_bridge_is_evidence_too(tiny):
    question = Question("Where does Ada live?", "Oslo", EVIDENCE, bridge=(40, 59))
    made = layout(tiny.tokenizer, Document("d", TEXT), question, "full", 256, 8)
    assert told(tiny.tokenizer, made, made.evidence) == "Ada lives in Oslo . Anna lives in Rome ."


def test_closed_book_has_no_document_and_no_evidence(tiny):
    made = layout(tiny.tokenizer, Document("d", TEXT), QUESTION, "none", 256, 8)
    assert made.roles == ["template", *["question"] * 5, "template", "answer"]
    assert made.evidence_place == "absent" and not any(made.evidence)


def test_braces_title_and_system_wording_are_not_mistaken(tiny):
    document = Document("d", "Is {question} in {context} MARK Oslo?", "Oslo")
    style = PromptStyle("{question}", "Oslo {title} {context} Oslo {question} Bern", system="MARK Is Oslo")
    made = layout(tiny.tokenizer, document, Question("Is Oslo", "Bern"), "full", 256, 8, style)
    words = tiny.tokenizer(document.text, add_special_tokens=False)["input_ids"]
    assert [i for i, r in zip(made.ids, made.roles, strict=True) if r == "document"] == words
    assert of_role(tiny.tokenizer, made, "question") == tiny.tokenizer.decode(tiny.tokenizer("Is Oslo")["input_ids"])
    assert of_role(tiny.tokenizer, made, "template").count("Oslo") == 4 and made.evidence_place == "unknown"


@pytest.mark.parametrize("style", ["plain", "loogle_v1"])
def test_head_and_tail_are_the_document_and_the_separator_is_not(tiny, style):
    document = register(3, 600)
    made = layout(tiny.tokenizer, document, document.questions[0], "truncated", 128, 8, STYLES[style])
    words = tiny.tokenizer(document.text, add_special_tokens=False)["input_ids"]
    shown = [i for i, r in zip(made.ids, made.roles, strict=True) if r == "document"]
    dots = made.ids.index(tiny.tokenizer.convert_tokens_to_ids("..."))
    head = sum(role == "document" for role in made.roles[:dots])
    assert shown == words[:head] + words[head - len(shown) :] and made.roles[dots] == "template"
    assert 0 < head < len(shown) < len(words)


@pytest.mark.parametrize("style", ["plain", "loogle_v1"])
def test_evidence_is_found_in_head_and_tail_cut_or_dropped(tiny, style):
    document = register(3, 600)
    places = []
    for question in document.asked(hops=1):
        made = layout(tiny.tokenizer, document, question, "truncated", 128, 8, STYLES[style])
        said = told(tiny.tokenizer, made, made.evidence)
        whole = tiny.tokenizer.decode(tiny.tokenizer(document.text[slice(*question.evidence)])["input_ids"])
        places.append(made.evidence_place)
        assert {"kept": said == whole, "cut": said and len(said) < len(whole), "dropped": not said}[places[-1]]
    assert {"kept", "dropped"} <= set(places)


def test_a_cut_sentence_and_a_lost_bridge_are_cut(tiny):
    document = register(3, 600)
    for evidence, bridge in [((0, len(document.text)), None), ((0, 5), (1500, 1510)), ((1500, 1510), (0, 5))]:
        made = layout(tiny.tokenizer, document, Question("Where?", "Oslo", evidence, bridge), "truncated", 128, 8)
        assert made.evidence_place == "cut" and any(made.evidence)


def test_a_chat_template_may_strip_but_not_rewrite(tiny):
    document = Document("d", f"  \n{TEXT}")
    question = Question("Where does Ada live?", "Oslo", (3, 21))
    tiny.tokenizer.chat_template = CHAT_TEMPLATE.replace("['content']", "['content'] | trim")
    assert "trim" in tiny.tokenizer.chat_template
    made = layout(tiny.tokenizer, document, question, "full", 256, 8)
    assert told(tiny.tokenizer, made, made.evidence) == "Ada lives in Oslo ."
    assert made.roles[:2] == ["template", "document"] and made.roles.count("document") == 15
    tiny.tokenizer.chat_template = CHAT_TEMPLATE.replace("['content']", "['content'] | upper")
    with pytest.raises(ValueError, match="rewrites the prompt"):
        layout(tiny.tokenizer, document, question, "full", 256, 8)


def test_an_answer_beyond_the_window_is_refused(tiny):
    with pytest.raises(ValueError, match="the window is 32 tokens"):
        layout(tiny.tokenizer, Document("d", TEXT), Question("Where?", "Oslo " * 40), "none", 32, 8)


# a raw prompt that ends with the question: its last token, which predicts the answer, has the answer's role
ENDS_WITH_QUESTION = [STYLES["plain_raw"]]


@pytest.fixture(scope="module")
def byte_level():
    return load("smollm2").tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("style", [style for style in STYLES.values() if style not in ENDS_WITH_QUESTION])
@pytest.mark.parametrize("context", ["none", "truncated", "full"])
def test_a_byte_level_tokenizer_is_placed_as_well(byte_level, context, style):
    text = "Zoë   paints 🦊 in Łódź.\n\n" * 30 + "Ada lives in Oslo.\n" + "Nothing else. " * 30
    start = text.index("Ada")
    question = Question("Where does Zoë live?", "in Oslo, I think", (start, start + 18))
    document = Document("d", text.strip(), "Zoë")
    made = layout(byte_level, document, question, context, 2000 if context == "full" else 240, 8, style)
    prompt = put(byte_level, document, question, context, 2000 if context == "full" else 240, 8, style)
    assert made.ids[: len(prompt)] == prompt
    assert byte_level.decode(made.ids[len(prompt) - 1 :]).endswith("in Oslo, I")
    assert of_role(byte_level, made, "question").strip() == question.text
    if context == "full":
        assert of_role(byte_level, made, "document").strip() == document.text
        assert told(byte_level, made, made.evidence).strip() == "Ada lives in Oslo."
