"""Pre-LIFT fine-tuning: nothing of a test document is trained on, the base model stays, the tuned one is shared."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from liftlab import adapters, answering, lifting, stacked
from liftlab.documents import Document, Question
from liftlab.examples import IGNORED, known_pairs
from liftlab.lifting import learning_rate_share, lift, make_examples, train
from liftlab.models import load
from liftlab.presft import Unseen, presft
from liftlab.recipes import Recipe
from liftlab.studies import conditions, document_sizes, dry_run, evaluation, run_counts, sources, tuning
from liftlab.worlds import register

TESTED = (register(200, 90), register(201, 90))
CORPUS = tuple(register(seed, 90, 0.0) for seed in (10_001, 10_004, 10_005))
CHANGES = {
    "segment_tokens": 48, "offset_tokens": 48, "mixed_epochs": 2, "batch_tokens": 256, "learning_rate": 1e-3,
}  # fmt: skip
FULL = Recipe.preset("micro/presft", **CHANGES)
RECIPES = {"full": FULL, "lora": replace(FULL, adapter="lora", learning_rate=1e-2)}


def tune(base, recipe=FULL, corpus=CORPUS, tests=TESTED, **settings):
    return presft(base, corpus, recipe, tests, progress=False, **settings)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(ones, others):
    return ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)


def loss(base, documents):
    """Mean loss a scored token of the documents' segments and pairs, one example at a time, all logits."""
    total = scored = 0
    for document in documents:
        for e in sum(make_examples(base, document, FULL, known_pairs(document)), []):
            logits, labels = base.model(input_ids=torch.tensor([e.ids])).logits[0], torch.tensor(e.labels)
            total += functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum").item()
            scored += e.scored_tokens
    return total / scored


@pytest.fixture
def trainings(monkeypatch):
    """The recipes of the trainings that are done from now on."""
    done, real = [], lifting.train

    def counted(base, recipe, *examples, **settings):
        done.append(recipe)
        return real(base, recipe, *examples, **settings)

    monkeypatch.setattr(lifting, "train", counted)
    return done


# --- what may be trained on


def test_one_shared_sentence_is_refused_whatever_its_case_and_spaces(tiny):
    question = TESTED[1].questions[0]
    (said,) = TESTED[1].evidence_of(question)
    taught = CORPUS[0].text + "\n\n" + said.upper().replace(" ", "  \n")
    corpus = [CORPUS[1], replace(CORPUS[0], text=taught)]
    with pytest.raises(ValueError, match=r"'register-10001' of the corpus shares the sentence .* 'register-201'") as e:
        tune(tiny, corpus=corpus)
    assert repr(said.upper()) in str(e.value)
    tune(tiny, corpus=[replace(corpus[1], text=taught.replace(" ", "  ", 1).rpartition("\n\n")[0]), CORPUS[1]])


def test_a_document_of_a_test_document_s_name_is_refused(tiny):
    with pytest.raises(ValueError, match="'register-201' of the corpus has the name of a test document"):
        tune(tiny, corpus=[replace(CORPUS[0], name="register-201")])


@pytest.mark.parametrize(
    ("change", "recipe", "message"),
    [
        ({"corpus": []}, FULL, "the corpus is empty: give at least one document"),
        ({}, Recipe.preset("micro/gated_memory"), "adapter gated_memory cannot become part .*: choose one of lora"),
        ({"pairs": lambda document: []}, replace(FULL, segments_in_mixed=False), "nothing to train on"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny, change, recipe, message):
    with pytest.raises(ValueError, match=message):
        tune(tiny, recipe, **change)


def test_packed_weights_are_refused(tiny):
    with pytest.raises(ValueError, match="tiny is packed in 4 bits"):
        tune(replace(tiny, provenance={**tiny.provenance, "quantization": "nf4"}))


def test_registers_are_drawn_beyond_the_tests_and_share_no_sentence_with_them(tiny):
    chosen = tuning.chosen({"documents": 40, "windows": 0.5, "recipe": "micro/presft"}, "plain")
    benchmark = {"source": "register", "tasks": ["short_qa"]}
    tests = sources.documents(benchmark, 4, tiny)  # with idle sentences
    found = tuning.corpus(chosen, benchmark, tiny, tests)
    assert len(found) == len({d.text for d in found}) == 40
    told = {sentence for d in tests for sentence in d.text.split(". ")}
    assert not told & {sentence for d in found for sentence in d.text.split(". ")}
    numbers = [int(d.name.removeprefix("register-")) for d in found]
    assert numbers == sorted(numbers) and min(numbers) >= 10_000 and max(numbers) < 10**6
    assert len(numbers) < max(numbers) - 10_000 + 1  # some were rejected


def test_other_documents_of_a_benchmark_are_those_that_share_nothing_with_the_tests(tiny, monkeypatch):
    """Of six documents one is tested, one holds its sentence, and two are the same."""
    texts = ["Ada lives in Oslo. One.", "Two. ada  lives in Oslo.", "Three.", "Three.", "Four.", "Five."]
    made = [Document(f"d{number}", text, questions=(Question("Where?", "Oslo"),)) for number, text in enumerate(texts)]
    monkeypatch.setitem(sources._SOURCES, "loogle", lambda plan, count, base: made)
    benchmark = {"source": "loogle", "tasks": ["longdep_qa"]}

    def corpus(count):
        chosen = tuning.chosen({"documents": count, "recipe": "micro/presft"}, "plain")
        return tuning.corpus(chosen, benchmark, tiny, made[:1])

    assert sorted(document.text for document in corpus(3)) == ["Five.", "Four.", "Three."]
    assert {document.text for document in corpus(2)} < {"Five.", "Four.", "Three."}
    with pytest.raises(ValueError, match="documents = 4: only 3 documents share no sentence with the tests"):
        corpus(4)


# --- what training does


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_corpus_is_learned_and_the_base_stays_bit_for_bit(tiny, adapter):
    before, untrained = weights(tiny.model), loss(tiny, CORPUS)
    tuned = tune(tiny, RECIPES[adapter])
    assert same(weights(tiny.model), before)
    assert loss(tuned, CORPUS) < untrained - 0.1
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters()) and not tuned.model.training
    told = tuned.provenance["presft"]
    assert (told["documents"], told["recipe"]["adapter"], told["base"]) == (3, adapter, tiny.provenance)
    assert told["pairs"] == sum(len(known_pairs(document)) for document in CORPUS)
    assert tuned.provenance["weights_sha256"] != tiny.provenance["weights_sha256"]


def test_a_lora_is_added_to_the_weights(tiny):
    """The tuned model says what the base model says with the trained adapter on, to 1e-5."""
    stages = [sum(of, []) for of in zip(*(make_examples(tiny, d, RECIPES["lora"], known_pairs(d)) for d in CORPUS),
                                        strict=True)]  # fmt: skip
    adapter, state, _ = train(tiny, RECIPES["lora"], *stages, progress=False)
    ids = torch.tensor([stages[0][0].ids])
    with adapters.attached(tiny.model, adapter, state) as model:
        expected = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(tune(tiny, RECIPES["lora"]).model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_tuned_model_is_lifted_and_asked_like_any_other(tiny):
    tuned = tune(tiny)
    recipe = Recipe.preset("micro/lora", mixed_epochs=1, segment_tokens=48, offset_tokens=48)
    lifted = lift(tuned, TESTED[0], recipe, progress=False)
    with lifted.on(tuned) as on:
        assert len(answering.answer(on, TESTED[0], TESTED[0].questions[:2], "none", answer_tokens=2)) == 2
    with pytest.raises(ValueError, match="was lifted on tiny after pre-LIFT fine-tuning"), lifted.on(tiny):
        pass


def test_the_same_training_gives_the_same_bits_and_another_corpus_another_name(tiny, tmp_path):
    once, again = tune(tiny), tune(tiny, folder=tmp_path)
    assert same(weights(once.model), weights(again.model)) and once.provenance == again.provenance
    other = tune(tiny, corpus=CORPUS[:2], folder=tmp_path)
    assert other.provenance["presft"]["corpus_sha256"] != once.provenance["presft"]["corpus_sha256"]
    assert len(list(tmp_path.glob("presft-*.safetensors"))) == 2


def test_cosine_falls_as_transformers_has_it_after_a_warm_up_of_a_share(tiny):
    """3 % of 100 steps are 3; transformers' warm-up begins at 0, ours a step later."""
    recipe = Recipe.preset("micro/presft", learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 3, 100)
    for done in range(100):
        share = learning_rate_share(recipe, done, 100)
        assert share == pytest.approx((done + 1) / 3 if done < 3 else scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="warmup_steps = 2 and warmup_share = 0.1: give one of them"):
        Recipe(warmup_steps=2, warmup_share=0.1)


# --- what is kept


def test_a_kept_model_is_read_and_a_damaged_or_half_written_one_is_made_again(tiny, tmp_path, trainings, capsys):
    first = tune(tiny, folder=tmp_path)
    assert same(weights(tune(tiny, folder=tmp_path).model), weights(first.model)) and len(trainings) == 1
    (file,) = tmp_path.glob("presft-*.safetensors")
    whole = file.read_bytes()
    damages = [
        lambda: file.write_bytes(whole[:-7]),
        lambda: file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        lambda: file.with_suffix(".json").unlink(),
        lambda: file.with_suffix(".json").write_text('{"sha256": '),
        lambda: file.with_name(f".{file.name}.1.tmp").write_bytes(whole[:9]) and file.unlink(),
    ]
    for number, damage in enumerate(damages, start=2):
        damage()
        assert same(weights(tune(tiny, folder=tmp_path).model), weights(first.model))
        assert len(trainings) == number and file.read_bytes() == whole
    assert f"{file} is damaged, the base model will be fine-tuned again" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, file.with_suffix(".json").name])


def test_two_that_ask_at_the_same_time_share_one_training(tiny, tmp_path, trainings):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: tune(tiny, folder=tmp_path), range(2))
    assert len(trainings) == 1 and same(weights(one.model), weights(two.model))


def test_other_programs_make_other_models(tiny, tmp_path, trainings):
    tune(tiny, folder=tmp_path, code="a")
    tune(tiny, folder=tmp_path, code="b")
    assert len(trainings) == 2


# --- in an evaluation

LIFTS = {"recipe": "micro/lora", "recipe_changes": {"mixed_epochs": 1, "rank": 2, "batch_tokens": 512}}
PLAIN = {"icl": {"context": "truncated"}, "lift": LIFTS}
TUNED = {f"{name}_sft": {**plan, "presft": True} for name, plan in PLAIN.items()}
SETTINGS = dict(
    base="micro", window_tokens=0, four_bit=False,
    benchmark={"source": "register", "tasks": ["short_qa"], "windows": 0.4}, documents=2, questions=2,
    auxiliary={"task": "known", "count": 2}, style="plain", seeds=1, answer_tokens=2, scores=["f1"], judge={},
)  # fmt: skip
SFT = {"documents": 3, "windows": 0.4, "recipe": "micro/presft",
       "recipe_changes": {**CHANGES, "learning_rate": 1e-2, "mixed_epochs": 6},
       "auxiliary": {"task": "known", "count": 4}}  # fmt: skip


@pytest.fixture
def micro():
    for kept in (evaluation._documents, evaluation._tuned):
        kept.cache_clear()
    return evaluation.base_model("micro", 0, False)


def ran(folder, conditions, presft):
    frame = evaluation.run("study", **SETTINGS, conditions=conditions, presft=presft, records=folder)
    return frame.drop(columns="seed").set_index("condition")


def test_conditions_with_and_without_get_side_by_side_what_they_get_alone(micro, tmp_path):
    both = ran(tmp_path / "both", PLAIN | TUNED, SFT)
    alone = {**dict.fromkeys(PLAIN, ran(tmp_path / "plain", PLAIN, {})),
             **dict.fromkeys(TUNED, ran(tmp_path / "tuned", TUNED, SFT))}  # fmt: skip
    for condition, frame in alone.items():
        assert both.loc[condition].equals(frame.loc[condition])
    assert list(both.loc["icl", "answer"]) != list(both.loc["icl_sft", "answer"])
    told = json.loads((tmp_path / "both" / "study.json").read_text())["provenance"]
    assert "corpus_sha256" in json.dumps(told)


def test_conditions_with_presft_are_lift_and_answer_on_the_tuned_model_by_hand(micro, tmp_path):
    frame = ran(tmp_path, TUNED, SFT)
    tests = sources.documents(SETTINGS["benchmark"], 2, micro, 2)
    corpus = tuning.corpus(tuning.chosen(SFT, "plain"), SETTINGS["benchmark"], micro, tests)
    assert all(not Unseen(tests).cannot(document) for document in corpus)
    settings = {name: SFT[name] for name in ("recipe", "recipe_changes", "auxiliary")}
    plan = conditions.plans({"sft": settings}, "plain", {})["sft"]
    pairs = {d.name: conditions.pairs_of(plan, micro, d, 0, tmp_path)[0] for d in corpus}
    tuned = presft(micro, corpus, plan.recipe_for(0), tests, lambda d: pairs[d.name], progress=False)
    lifts = conditions.plans(TUNED, "plain", SETTINGS["auxiliary"])["lift_sft"]
    said = {"icl_sft": [], "lift_sft": []}
    for document in tests:
        asked = [question for question in document.questions if question.wording != "trained"]
        said["icl_sft"] += answering.answer(tuned, document, asked, "truncated", answer_tokens=2)
        taught, _ = conditions.pairs_of(lifts, micro, document, 0, tmp_path)
        with lift(tuned, document, lifts.recipe_for(0), taught, progress=False).on(tuned) as on:
            said["lift_sft"] += answering.answer(on, document, asked, "none", answer_tokens=2)
    for condition, answers in said.items():
        rows = frame.loc[condition]
        assert list(rows.loc[rows["metric"] == "f1", "answer"]) == answers


def test_later_runs_read_the_tuned_model(micro, tmp_path, trainings):
    ran(tmp_path, TUNED, SFT)
    assert len(trainings) == 1
    for file in (tmp_path / "study").glob("*.csv"):
        file.unlink()
    evaluation._tuned.cache_clear()
    ran(tmp_path, TUNED, SFT)
    assert len(trainings) == 1


def test_a_job_for_another_base_model_is_not_lifted_on_this_one(tiny):
    other = tune(tiny)
    job = stacked.Job(TESTED[0], Recipe.preset("micro/lora"), base=other)
    with pytest.raises(ValueError, match="'register-200' is to be lifted on tiny after pre-LIFT .*, not on tiny"):
        stacked.lift(tiny, [job], progress=False)


@pytest.mark.parametrize(
    ("wanted", "change", "settings", "message"),
    [
        (TUNED, None, {}, "condition 'icl_sft' has presft, but presft is {}: give its documents and recipe"),
        (PLAIN, {}, {}, "presft is given, but no condition has presft: true"),
        (TUNED, {"document": 3}, {}, "setting of presft: 'document' is unknown: choose among documents, windows"),
        (TUNED, {"documents": 0}, {}, "presft: documents = 0: must be at least 1"),
        (TUNED, {"windows": 0}, {}, "presft: windows = 0.0: .* give a number above 0"),
        (TUNED, {"recipe": "micro/pissa", "recipe_changes": {}}, {}, "presft: adapter 'pissa' is unknown"),
        (TUNED, {"recipe_changes": {"style": "plain"}}, {}, "recipe_changes holds style"),
        (TUNED, {}, {"four_bit": True}, "presft fine-tunes the base weights, which four_bit packs"),
        ({"icl": {"presft": 1.5}}, {}, {}, "condition 'icl': presft = 1.5: give true or false"),
    ],
)
def test_wrong_settings_are_told_before_a_model_is_loaded(wanted, change, settings, message):
    given = {} if change is None else SFT | change
    with pytest.raises(ValueError, match=message):
        evaluation.checked(**SETTINGS | settings, conditions=wanted, presft=given)


def test_a_dry_run_counts_the_fine_tuning_as_it_is_done(tmp_path):
    """Steps, tokens and pairs of the corpus that is then trained on."""
    parameters = {**SETTINGS, "conditions": PLAIN | TUNED, "presft": SFT, "profile": "micro"}
    row = dry_run.of(parameters).table.loc[run_counts.TUNING]
    base = document_sizes.known("micro", 0)
    tests = sources.documents(SETTINGS["benchmark"], 2, base, 2)
    chosen = tuning.chosen(SFT, "plain")
    corpus = tuning.corpus(chosen, SETTINGS["benchmark"], base, tests)
    pairs = {d.name: conditions.pairs_of(chosen.plan, base, d, 0, tmp_path)[0] for d in corpus}
    done = presft(load("micro"), corpus, chosen.recipe, tests, lambda d: pairs[d.name], progress=False)
    told = done.provenance["presft"]
    assert (row["steps"], row["train_tokens"], row["pairs"]) == (told["steps"], told["tokens"], told["pairs"])
    assert (row["documents"], row["lifts"]) == (3, 1) and row["operations"] > 0
