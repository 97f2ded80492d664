"""What is asked, word by word: tests/golden/prompts.yaml holds the whole prompt of every style."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from liftlab.documents import Document, Question
from liftlab.pretraining import word_tokenizer
from liftlab.prompts import (
    SEPARATOR,
    STYLES,
    Cuts,
    PromptStyle,
    encode_prompt,
    encode_prompts,
    head_and_tail,
    put,
    render,
    style,
    token_ids,
    with_evidence,
)
from liftlab.worlds import register

TOKENIZER = word_tokenizer()
GOLDEN = yaml.safe_load((Path(__file__).parent / "golden" / "prompts.yaml").read_text("utf-8"))
ASKED = Question("Where does Ada live?", "Oslo", (0, 18))
DOCUMENT = Document("d", "Ada lives in Oslo. Anna lives in Rome.", "The register of Colby", (ASKED,))
SHOWN = {"closed_book": "none", "with_context": "full"}
WORDS = r"\n|\.\.\.|\w+|[^\w\s]"
MARKS = ("<s>", "<end>", "<system>", "<user>", "<assistant>", "<unk>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def readable_tokenizer(*texts):
    """A BOS, a chat template, and a token for each word, mark and new line of `texts`; spaces are no tokens."""
    known = dict.fromkeys((*MARKS, *(word for text in texts for word in re.findall(WORDS, text))))
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE,
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
    )  # fmt: skip


def spoken(tokenizer, ids):
    """The tokens one by one, a new line as its sign."""
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("\n", "⏎")


READABLE = readable_tokenizer("\n" + SEPARATOR, *(text for of in GOLDEN["styles"].values() for text in of.values()))


def asked(tokenizer, question, shown, name, window=256):
    return put(tokenizer, DOCUMENT, question, SHOWN[shown], window, 8, style(name))


def test_every_style_has_its_goldens_and_no_golden_is_without_its_style():
    assert list(GOLDEN["styles"]) == list(STYLES)
    assert {tuple(of) for of in GOLDEN["styles"].values()} == {
        ("closed_book", "with_context", "with_evidence", "closed_book_tokens", "with_context_tokens")
    }


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("name", STYLES)
def test_the_whole_prompt_word_for_word(name, shown):
    golden, context = GOLDEN["styles"][name], DOCUMENT.text if shown == "with_context" else None
    text = style(name).text(ASKED.text, DOCUMENT.title, context)
    assert render(READABLE, text, style(name)) == golden[shown]
    ids = asked(READABLE, ASKED, shown, name)
    assert spoken(READABLE, ids) == golden[f"{shown}_tokens"] and READABLE.unk_token_id not in ids


@pytest.mark.parametrize("name", STYLES)
def test_the_whole_prompt_with_its_evidence_word_for_word(name):
    given = with_evidence(DOCUMENT, ASKED, style(name))
    text = style(name).text(given.text, DOCUMENT.title, DOCUMENT.text)
    assert render(READABLE, text, style(name)) == GOLDEN["styles"][name]["with_evidence"]


@pytest.mark.parametrize("name", GOLDEN["micro"])
def test_the_whole_prompt_as_the_micro_model_reads_it(name):
    said = {shown: spoken(TOKENIZER, asked(TOKENIZER, ASKED, shown, name)) for shown in SHOWN}
    assert said == GOLDEN["micro"][name]


def test_chat_or_raw_and_bos_or_none_are_all_that_the_published_words_vary_in():
    """A comparison of loogle_v1 with these two measures BOS alone, and the chat template alone."""
    names = ("loogle_v1", "loogle_v1_bos", "loogle_v1_chat")
    raw, bos, chat = map(style, names)
    assert {(s.question, s.with_context, s.evidence, s.system) for s in (bos, chat)} == {
        (raw.question, raw.with_context, raw.evidence, "")
    }
    assert [(s.chat, s.bos) for s in (raw, bos, chat)] == [(False, False), (False, True), (True, False)]
    ids = [asked(READABLE, ASKED, "closed_book", name) for name in names]
    assert ids[1] == [READABLE.bos_token_id, *ids[0]] and READABLE.bos_token_id not in ids[0]
    assert ids[2].count(READABLE.bos_token_id) == 1  # the template's own


def test_raw_prompts_have_no_template_and_no_bos():
    ids = encode_prompt(TOKENIZER, "Where does Ada live?", STYLES["loogle_v1"])
    assert ids == TOKENIZER("Where does Ada live?", add_special_tokens=False)["input_ids"]


ODD = ["Where does Ada live?", "", " \n", "Who <|end|> rows <end>?", "<s> <|assistant|> Ada", "  Ada\n\n", "é {x} %}"]
TRIMMING = TEMPLATE.replace("m['content']", "m['content'] | trim")


@pytest.mark.parametrize("tokenizer", [TOKENIZER, READABLE], ids=["micro", "with a BOS"])
@pytest.mark.parametrize("template", [None, TRIMMING], ids=["its own template", "a template that trims"])
@pytest.mark.parametrize("system", ["", "Be <|end|> kind."])
def test_many_chat_prompts_at_once_are_those_that_transformers_makes_one_by_one(
    monkeypatch, tokenizer, template, system
):
    monkeypatch.setattr(tokenizer, "chat_template", template or tokenizer.chat_template)
    chat = PromptStyle("{question}", "{context}\n{question}", system=system)
    said = [[{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": t}] for t in ODD]
    texts = [tokenizer.apply_chat_template(of, add_generation_prompt=True, tokenize=False) for of in said]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encode_prompts(tokenizer, ODD, chat) == expected == [encode_prompt(tokenizer, t, chat) for t in ODD]
    assert [render(tokenizer, text, chat) for text in ODD] == texts


def test_many_raw_prompts_at_once_are_those_one_by_one():
    adding = readable_tokenizer(*ODD)  # it puts a BOS before each text, unless it is told not to
    begin = {"single": "<s> $A", "special_tokens": [("<s>", adding.bos_token_id)]}
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(**begin)
    assert adding("Ada")["input_ids"][0] == adding.bos_token_id
    for tokenizer, name, before in [(TOKENIZER, "loogle_v1", ""), (adding, "loogle_v1", ""),
                                    (adding, "loogle_v1_bos", "<s>")]:  # fmt: skip
        expected = [tokenizer(before + text, add_special_tokens=False)["input_ids"] for text in ODD]
        assert encode_prompts(tokenizer, ODD, style(name)) == expected
        assert token_ids(tokenizer, [before + text for text in ODD]) == expected


@pytest.mark.parametrize("name", ["plain", "loogle_v1"])
def test_no_text_gives_no_ids(name):
    assert encode_prompts(TOKENIZER, [], style(name)) == token_ids(TOKENIZER, []) == []


def test_braces_in_a_document_are_plain_text():
    for name in STYLES:
        text = STYLES[name].text("Is {question} kept?", "{title}", "{input} {0} }{")
        assert "{input} {0} }{" in text and "Is {question} kept?" in text
    given = with_evidence(DOCUMENT, Question("Where?", "Oslo", quoted=("{evidence} }{",)), STYLES["plain"])
    assert given.text == "Evidence: {evidence} }{\nWhere?"


def test_a_system_message_comes_first():
    ids = encode_prompt(TOKENIZER, "Where?", PromptStyle("{question}", "{context} {question}", system="Oslo"))
    assert TOKENIZER.decode(ids).startswith("<|system|> Oslo <|end|> <|user|>")


def test_a_style_of_one_s_own_is_given_by_its_fields():
    own = {"question": "Q: {question}", "with_context": "{{T}} {context}\nQ: {question}", "chat": False, "bos": True}
    own |= {"evidence": "({evidence}) "}
    assert style(own) == style(json.loads(json.dumps(own))) == PromptStyle(**own)
    assert render(READABLE, style(own).text("Who?", "t", "Ada."), style(own)) == "<s>{T} Ada.\nQ: Who?"
    assert with_evidence(DOCUMENT, ASKED, style(own)).text == "(Ada lives in Oslo.) Where does Ada live?"
    assert style({"question": "{question}", "with_context": "{context}\n{question}"}) == style("plain")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "x"}, "no field 'answer': choose among question, with_context, chat, system, bos, evidence"),
        ({"question": "{input}"}, r"question holds the field \{input\}, allowed are \{question\}, \{title\}:"),
        ({"question": "{context}"}, r"question holds the field \{context\}"),
        ({"with_context": "{context}{}"}, r"with_context holds the field \{\}, allowed are .*\{context\}"),
        ({"with_context": "{context!r}"}, r"with_context holds the field \{context!r\}"),
        ({"with_context": "{context:>9}"}, r"with_context holds the field \{context:>9\}"),
        ({"evidence": "{question}"}, r"evidence holds the field \{question\}, allowed are \{evidence\}"),
        ({"question": "{question"}, "question = '{question': .*double a brace"),
        ({"with_context": "{question}"}, r"with_context = '\{question\}' lacks \{context\}, which would be lost"),
        ({"evidence": "Look:"}, r"evidence = 'Look:' lacks \{evidence\}"),
        ({"question": None}, "question = None: must be a text"),
        ({"chat": "no"}, "chat = 'no': must be true or false"),
        ({"bos": True}, "bos with chat: .* leave bos out"),
        ({"chat": False, "system": "Be kind."}, "system without chat: .* leave system out"),
    ],
)
def test_a_style_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        style({"question": "{question}", "with_context": "{context}\n{question}"} | changes)


def test_a_style_without_its_templates_is_refused():
    with pytest.raises(ValueError, match="prompt style lacks question and with_context: give the template"):
        style({"chat": False})
    with pytest.raises(ValueError, match="prompt style lacks with_context:"):
        style({"question": "{question}"})


def test_a_style_may_ask_nothing_but_loses_no_question():
    """As the official summaries of LongBench, whose question is empty."""
    summary = style({"question": "Summary:", "with_context": "{context}\nSummary:"})
    assert summary.text("", "t", "Ada lives.") == "Ada lives.\nSummary:"
    with pytest.raises(ValueError, match=r"'Summary:' has no \{question\}, so 'Who\?' would not be asked"):
        summary.text("Who?")


def test_a_benchmark_s_summary_asks_nothing_but_the_summary():
    """Its question is empty, which leaves an empty line."""
    text = style("longbench_gov_report").text("", "", "Ada lives in Oslo.")
    assert text == (
        "Read this report by a government agency.\n\nAda lives in Oslo.\n\n"
        "Write a summary of the report, one page long.\nSummary:"
    )


def test_evidence_is_given_as_quoted_else_as_the_document_has_it():
    two = Question("Who?", "Ada", (19, 38), (0, 18))
    plain = style("plain")
    assert with_evidence(DOCUMENT, two, plain).text == (
        "Evidence: Anna lives in Rome.\nAda lives in Oslo.\nWho?"  # evidence, then bridge
    )
    quoted = Question("Who?", "Ada", (19, 38), quoted=("Anna lives.", "Ada lives."), also=("Anna",), kind="who")
    given = with_evidence(DOCUMENT, quoted, plain)
    assert given.text == "Evidence: Anna lives.\nAda lives.\nWho?"
    same = ("answer", "evidence", "bridge", "also", "kind", "quoted")
    assert [getattr(given, name) for name in same] == [getattr(quoted, name) for name in same]
    with pytest.raises(ValueError, match=r"question 'Who\?' of document 'd' has no evidence to give"):
        with_evidence(DOCUMENT, Question("Who?", "Ada"), plain)


@pytest.mark.parametrize("name", ["plain", "plain_raw", "loogle_v1"])
def test_truncating_the_document_leaves_the_evidence_its_room(name):
    document = register(3, 600)
    for question in document.asked(hops=2):
        given = with_evidence(document, question, style(name))
        prompt = put(TOKENIZER, document, given, "truncated", 128, 8, style(name))
        told = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in document.evidence_of(question)]
        assert 128 - 8 - 2 <= len(prompt) <= 128 - 8 and len(told) == 2
        said = spoken(TOKENIZER, prompt).split("...")[1]
        assert all(spoken(TOKENIZER, ids) in said for ids in told)


@pytest.mark.parametrize("budget", [10, 31, 100, 101])
def test_truncation_keeps_head_and_tail_in_order_within_the_budget(budget):
    text = register(0, 400).text
    tokens = lambda t: TOKENIZER(t, add_special_tokens=False)["input_ids"]  # noqa: E731
    kept = head_and_tail(TOKENIZER, text, budget)
    head, tail = kept.split("\n...\n")
    assert budget - 1 <= len(tokens(kept)) <= budget
    assert text.startswith(head) and text.endswith(tail)
    assert len(tokens(head)) == budget // 2 - 1 and len(tokens(tail)) == budget // 2


def test_a_text_within_the_budget_is_not_touched():
    assert head_and_tail(TOKENIZER, "Ada lives in Oslo.", 5) == "Ada lives in Oslo."


@pytest.mark.parametrize("words", [100, 400, 1000])
@pytest.mark.parametrize("window", [64, 256])
def test_a_truncated_prompt_fits_the_window_and_fills_it(words, window):
    document = register(0, words)
    prompt = put(TOKENIZER, document, document.questions[0], "truncated", window, 8)
    assert len(prompt) <= window - 8
    full = put(TOKENIZER, document, document.questions[0], "full", window, 8)
    assert (prompt == full) if full else len(prompt) >= window - 8 - 2


class Counting:
    """A tokenizer that notes how many texts each call to it holds."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def __call__(self, text, **settings):
        self.calls.append((1 if isinstance(text, str) else len(text), "return_offsets_mapping" in settings))
        return self.tokenizer(text, **settings)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_questions_that_share_a_document_s_cuts_find_its_tokens_once():
    document = register(0, 400)
    asked, counting = [q for q in document.questions if q.hops == 1][:6], Counting(TOKENIZER)
    cuts = Cuts(counting, document.text)
    shared = [put(counting, document, q, "truncated", 128, 8, cuts=cuts) for q in asked]
    assert shared == [put(TOKENIZER, document, q, "truncated", 128, 8) for q in asked]
    assert sum(offsets for _, offsets in counting.calls) == 1
    budgets = (10, 31, 100, 5000)
    assert [cuts.within(n) for n in budgets] == [Cuts(TOKENIZER, document.text).within(n) for n in budgets]


def test_the_full_document_is_given_whole_or_not_at_all():
    assert put(TOKENIZER, register(0, 400), "Where?", "full", 256, 8) is None


def test_mistakes_are_named():
    document = register(0, 100)
    with pytest.raises(ValueError, match="the window is 16 tokens"):
        put(TOKENIZER, document, "Where " * 20, "none", 16, 8)
    with pytest.raises(ValueError, match="the question takes 23 tokens and the answer 8, the window is 16 tokens"):
        put(TOKENIZER, document, "Where " * 20, "truncated", 16, 8)  # 20 words and the template, not the document
    with pytest.raises(ValueError, match="context 'some' is unknown"):
        put(TOKENIZER, document, "Where?", "some", 256, 8)
    for unknown in ("casual", ["plain"], None):
        with pytest.raises(ValueError, match="is unknown: choose one of plain, .*loogle_v1, .*or give its fields"):
            style(unknown)
    with pytest.raises(ValueError, match="no BOS: choose a prompt style without bos"):
        encode_prompt(TOKENIZER, "Where?", STYLES["loogle_v1_bos"])
    bare = word_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(bare, "Where?", STYLES["plain"])
