"""Studies on registers in fluent English: with a base model that reads it, and refused where it cannot."""

import inspect
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from liftlab import records
from liftlab.examples import document_ids
from liftlab.models import load
from liftlab.parameters import RunError
from liftlab.presft import Unseen
from liftlab.runner import parameters, root
from liftlab.studies import (
    adapters,
    companions,
    conflict,
    evaluation,
    evidence_position,
    gate_values,
    lift_vs_icl,
    many_documents,
    memorization_vs_icl,
    oracle_gate,
    registers,
    segment_offset,
    sources,
    tuning,
)
from liftlab.worlds import register

STUDIES = (adapters, companions, conflict, evidence_position, gate_values, lift_vs_icl, many_documents,
           memorization_vs_icl, oracle_gate, segment_offset)  # fmt: skip
LIFT = dict(
    window_tokens=0, windows=[0.8, 1.5], documents=1, seeds=1, questions=3, recipe="micro/lora",
    recipe_changes={"mixed_epochs": 1, "rank": 2, "style": "plain_raw"}, filler=0.1, answer_tokens=2,
    conditions=["closed_book", "truncated_icl", "lift"],
)  # fmt: skip


@cache
def subwords():
    """A byte-pair tokenizer, as those of the published models: it knows every text, and a rare word is several."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [register(seed, 400, english="fluent").text for seed in range(20)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<end>"])
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", padding_side="left")


@pytest.fixture
def directory(tmp_path):
    """A model with a subword tokenizer as save_pretrained writes it; window 320 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(subwords()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=320, bos_token_id=None, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    subwords().save_pretrained(tmp_path / "model")
    registers.base_model.cache_clear()
    return str(tmp_path / "model")


def test_a_study_lifts_and_asks_a_fluent_register(directory, tmp_path):
    frame = lift_vs_icl.run(base=directory, english="fluent", **LIFT, records=tmp_path / "records")
    table, about = records.read(tmp_path / "records/lift_vs_icl.csv")
    assert set(table["document"]) == {"register-200-fluent"} and {of["english"] for of in about["grid"]} == {"fluent"}
    assert {"closed_book", "truncated_icl", "lift"} < set(frame["condition"])
    asked = {q.text for q in register(200, 150, english="fluent").asked()}
    assert set(frame["question"]) & asked
    plain = lift_vs_icl.run(base=directory, **LIFT, records=tmp_path / "plain")
    assert set(plain["document"]) == {"register-200"}


@pytest.mark.parametrize("windows", [0.5, 1.0, 2.0, 4.0])
def test_a_fluent_register_takes_the_windows_it_is_asked_for(directory, windows):
    base = load(directory)
    room = base.window - registers.QUESTION_TOKENS
    for seed in range(8):
        document = registers.register_of(base, seed, windows, 0.1, "fluent")
        assert windows * room - 80 <= len(document_ids(base.tokenizer, document)) <= windows * room


def test_a_paraphrase_tells_the_same_facts(directory):
    base = load(directory)
    for seed in range(4):
        document, other = (
            of(base, seed, 1.5, 0.1, "fluent") for of in (registers.register_of, registers.paraphrase_of)
        )
        told, again = ({(q.text, q.answer) for q in of.asked(hops=1)} for of in (document, other))
        assert other.text != document.text and len(told ^ again) <= 15  # five wordings a fact


def test_an_evaluation_and_its_fine_tuning_take_fluent_registers(directory):
    base = load(directory)
    benchmark = {"source": "register", "tasks": ["short_qa", "timeline_reorder"], "english": "fluent"}
    tests = sources.documents(benchmark, 2, base, questions=4)
    assert [document.name for document in tests] == ["register-200-fluent", "register-201-fluent"]
    chosen = tuning.chosen({"documents": 3, "recipe": "micro/lora"}, "plain")
    corpus = tuning.corpus(chosen, benchmark, base, tests)
    assert len(corpus) == 3 and all(document.name.endswith("-fluent") for document in corpus)
    assert not any(Unseen(tests).cannot(document) for document in corpus)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("base", "english", "message"), [
    ("micro", "fluent", "english = 'fluent': base model 'micro' cannot read it, .* set english to plain, or choose"),
    ("random:llama-3-8b", "fluent", "base model 'random:llama-3-8b' cannot read it"),
    ("smollm2", "french", "english 'french' is unknown: choose among plain, fluent"),
])  # fmt: skip
def test_what_a_base_model_cannot_read_is_refused_before_it_is_loaded(
    study, base, english, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(registers, "load", lambda *_, **__: pytest.fail("loaded"))
    notebook = study.__name__.rpartition(".")[2]
    settings = parameters(root(), notebook, "micro_timed" if notebook == "adapters" else "micro", {})
    known = settings.keys() & inspect.signature(study.run).parameters.keys()
    given = {name: settings[name] for name in known} | {"base": base, "english": english}
    assert "english" in known
    with pytest.raises(ValueError, match=message) as error:
        study.run(**given, records=tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_evaluation_refuses_what_micro_cannot_read(tmp_path):
    settings = parameters(root(), "table_loogle", "micro", {})
    known = settings.keys() & inspect.signature(evaluation.checked).parameters.keys()
    fluent = {**settings["benchmark"], "english": "fluent"}
    with pytest.raises(ValueError, match="english = 'fluent': base model 'micro' cannot read it"):
        evaluation.checked(**{name: settings[name] for name in known} | {"benchmark": fluent})
    with pytest.raises(ValueError, match=r"benchmark: english = 'french': it must be one of plain, fluent"):
        sources.checked({**fluent, "english": "french"})


def test_a_tokenizer_without_the_words_is_refused_whatever_the_model_is_called(tiny):
    with pytest.raises(ValueError, match="the tokenizer of base model 'tiny' does not know all words of register-200-"):
        registers.register_of(tiny, 200, 1.0, 0.1, "fluent")
    assert registers.register_of(tiny, 200, 1.0, 0.1).name == "register-200"


def test_a_notebook_says_which_english_there_is():
    with pytest.raises(RunError, match="'french'.* must be one of plain, fluent.* notebook's own 'plain'"):
        parameters(root(), "conflict", "micro", {"english": "french"})
    assert parameters(root(), "conflict", "micro", {"english": "fluent"})["english"] == "fluent"
