import pytest

from liftlab.documents import Document
from liftlab.pretraining import word_tokenizer
from liftlab.prompts import STYLES, PromptStyle, encode_prompt, head_and_tail, put, style
from liftlab.worlds import register

TOKENIZER = word_tokenizer()


def test_whole_prompts_word_for_word():
    document = Document("d", "Ada lives in Oslo.", "The register of Colby")

    def say(context, name):
        return TOKENIZER.decode(put(TOKENIZER, document, "Where does Ada live?", context, 256, 8, style(name)))

    assert say("none", "plain") == "<|user|> Where does Ada live ? <|end|> <|assistant|>"
    assert say("full", "plain") == "<|user|> Ada lives in Oslo . Where does Ada live ? <|end|> <|assistant|>"
    assert STYLES["loogle_v1"].text("Where?", "Colby", "Ada.") == (
        "The article Colby: \nAda.\nPlease answer the question based on Colby.\nQuestion: Where?\nAnswer: "
    )
    assert STYLES["loogle_v4"].text("Where?", "Colby") == (
        'Please answer the question based on "Colby".\nQuestion: Where?\nAnswer:'
    )


def test_raw_prompts_have_no_template_and_no_bos():
    ids = encode_prompt(TOKENIZER, "Where does Ada live?", STYLES["loogle_v1"])
    assert ids == TOKENIZER("Where does Ada live?", add_special_tokens=False)["input_ids"]


def test_braces_in_a_document_are_plain_text():
    for name in STYLES:
        text = STYLES[name].text("Is {question} kept?", "{title}", "{input} {0} }{")
        assert "{input} {0} }{" in text and "Is {question} kept?" in text


def test_a_system_message_comes_first():
    ids = encode_prompt(TOKENIZER, "Where?", PromptStyle("{question}", "{question}", system="Oslo"))
    assert TOKENIZER.decode(ids).startswith("<|system|> Oslo <|end|> <|user|>")


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


def test_the_full_document_is_given_whole_or_not_at_all():
    assert put(TOKENIZER, register(0, 400), "Where?", "full", 256, 8) is None


def test_mistakes_are_named():
    document = register(0, 100)
    with pytest.raises(ValueError, match="the window is 16 tokens"):
        put(TOKENIZER, document, "Where " * 20, "none", 16, 8)
    with pytest.raises(ValueError, match="context 'some' is unknown"):
        put(TOKENIZER, document, "Where?", "some", 256, 8)
    with pytest.raises(ValueError, match="choose one of plain, loogle_v1"):
        style("casual")
    bare = word_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(bare, "Where?", STYLES["plain"])
