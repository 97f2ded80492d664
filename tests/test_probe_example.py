"""The README's example of a probe is one: found by name, under the laws of all probes, and right."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_probes as laws
import torch
from test_probes import asked, gated  # noqa: F401 (fixtures)

from liftlab import probes
from liftlab.prompts import put
from liftlab.studies.registers import ask_facts, register_of

README = Path(__file__).parents[1] / "README.md"


def block():
    """The one python block under the heading."""
    section = re.search(
        r"^### Adding a probe\n(.*?)(?=^#{2,3} |\Z)", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert section, "README.md has no heading '### Adding a probe'"
    found = re.findall(r"^```python\n(.*?)^```$", section[1], re.M | re.S)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The example's name, while it lies where probes are found."""
    text = block()
    path = Path(re.match(r"# (liftlab/probes/\w+\.py)\n", text)[1])
    (tmp_path / path.name).write_text(text, "utf-8")
    there = probes.names()
    monkeypatch.setattr(probes, "__path__", [*probes.__path__, str(tmp_path)])
    yield path.stem
    sys.modules.pop(f"{probes.__name__}.{path.stem}", None)
    vars(probes).pop(path.stem, None)
    monkeypatch.undo()
    assert probes.names() == there and path.stem not in there


def test_it_is_short_and_a_new_one():
    assert len(block().splitlines()) <= 24


def test_it_is_found_by_its_file_s_name(name):
    assert name in probes.names() and probes.find(name).__module__ == f"liftlab.probes.{name}"


@pytest.mark.parametrize("training", [False, True])
def test_it_says_the_same_twice_and_leaves_no_trace(name, training, gated, asked):  # noqa: F811
    laws.test_a_probe_says_the_same_twice_and_leaves_no_trace(name, training, gated, asked)


def test_its_rows_are_records(name, gated, asked):  # noqa: F811
    laws.test_a_probe_s_rows_are_records_once_they_say_what_they_are_of(name, gated, asked)


def test_where_it_fails_it_leaves_no_trace_either(name, gated, asked, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        laws.test_a_probe_that_fails_leaves_no_trace_either(name, gated, asked, patch)


def test_it_takes_a_base_model_too(name, tiny, asked):  # noqa: F811
    laws.test_the_other_probes_take_a_base_model_too(name, tiny, asked)


@pytest.mark.parametrize("context", ["none", "truncated"])
def test_its_numbers_are_those_of_all_logits_in_float64(name, tiny, context):
    """Of answers of one token and of several; a row a question, in their order."""
    document = register_of(tiny, 0, 1.5, 0.1)
    facts = ask_facts(document, 6, 0)
    questions = [*facts, replace(facts[0], answer=f"{facts[1].answer} and {facts[2].answer}")]
    rows = probes.find(name)(tiny, document, questions, context=context)
    expected = []
    for question in questions:
        told = tiny.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
        ids = [*put(tiny.tokenizer, document, question, context, tiny.window, 8), *told]
        with torch.no_grad():
            log_p = tiny.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = range(len(ids) - len(told), len(ids))
        expected.append(-np.mean([log_p[place - 1, ids[place]].item() for place in places]) / math.log(2))
    np.testing.assert_allclose(rows["value"], expected, rtol=1e-5)
    assert list(rows["question"]) == [question.text for question in questions] and len(set(expected)) == len(expected)
    assert set(rows["unit"]) == {"bits a token"} and isinstance(rows, pd.DataFrame)


def test_what_does_not_apply_is_refused(name, tiny, asked):  # noqa: F811
    with pytest.raises(ValueError, match="no question was given"):
        probes.find(name)(tiny, asked[0], [])
    long = register_of(tiny, 0, 2, 0.1)
    with pytest.raises(ValueError, match="do not fit the window of 256 tokens"):
        probes.find(name)(tiny, long, ask_facts(long, 1, 0), context="full")
