"""An evaluation's documents: as many as said, at the depths and lengths asked for, or one clear error."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from liftlab import hub_data
from liftlab.benchmarks import read_longbench, read_loogle
from liftlab.examples import document_ids
from liftlab.studies import sources
from liftlab.studies.registers import QUESTION_TOKENS, register_of
from liftlab.worlds import vocabulary

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "loogle"
REGISTER = {"source": "register", "tasks": ["short_qa"]}
NEEDLES = {"source": "register_needle", "windows": [0.5, 1.5], "depths": [0.0, 0.25, 0.5, 1.0]}
LOOGLE = {"source": "loogle", "tasks": ["shortdep_qa"]}
LONGBENCH = {"source": "longbench", "tasks": ["musique"]}
NEEDLE = {"source": "needle", "path": "hay", "words": [50], "depths": [0.5], "needle": "N is 7.", "question": "N?",
          "answer": "7"}  # fmt: skip
PAIRS = [{"Q": f"q{i}?", "A": f"a{i}", "S": ["Ada"], "type": kind} for i, kind in enumerate(["computation", "", ""])]


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """LooGLE in both released forms, LongBench, a question set and a haystack."""
    rows = [{"input": f"Ada {i}.", "title": f"t{i}", "qa_pairs": PAIRS if i % 2 else repr(PAIRS)} for i in range(7)]
    lines(tmp_path / "shortdep_qa.jsonl", *rows)
    lines(tmp_path / "longdep_qa.jsonl", *rows[:3])
    for task in ("musique", "qmsum"):
        of = [{"input": "Q?", "context": f"c{i}", "answers": ["a"], "dataset": task, "_id": f"{task}{i}"}
              for i in range(6)]  # fmt: skip
        lines(tmp_path / f"{task}.jsonl", *of)
    own = [{"document": f"d{i}", "question": "q?", "answer": "a", "kind": "x" * (i % 2)} for i in range(4)]
    lines(tmp_path / "own.jsonl", *own)
    (tmp_path / "hay").mkdir()
    (tmp_path / "hay" / "a.txt").write_text(" ".join(f"Word{i} stands here." for i in range(120)), "utf-8")
    return tmp_path


def all_sources(folder):
    return {
        "register": REGISTER,
        "register_needle": NEEDLES,
        "loogle": {**LOOGLE, "tasks": ["shortdep_qa", "longdep_qa"], "path": str(folder)},
        "longbench": {**LONGBENCH, "tasks": ["musique", "qmsum"], "path": str(folder)},
        "needle": {**NEEDLE, "path": str(folder / "hay"), "words": [50, 90], "depths": [0.0, 0.5, 1.0]},
        "questions": {"source": "questions", "path": str(folder / "own.jsonl")},
    }


def test_defaults_are_filled_in_and_filling_in_again_changes_nothing():
    assert sources.checked(REGISTER) == {**REGISTER, "windows": 1.5, "filler": 0.1, "english": "plain"}
    assert sources.checked(LOOGLE) == {**LOOGLE, "path": "", "revision": ""}
    for one in (REGISTER, NEEDLES, LOOGLE, LONGBENCH, NEEDLE, {"source": "questions", "path": "a.jsonl"}):
        plan = sources.checked(one)
        assert plan == sources.checked(plan) and set(plan) == {"source", *sources.FIELDS[one["source"]]}


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({}, "benchmark source '' is unknown: choose among register, "),
        ({"source": "squad"}, "benchmark source 'squad' is unknown"),
        ({**REGISTER, "task": []}, "field of benchmark source 'register': 'task' is unknown: choose among tasks"),
        ({"source": "register"}, "benchmark source 'register' needs 'tasks'"),
        ({"source": "questions"}, "benchmark source 'questions' needs 'path'"),
        ({**REGISTER, "tasks": "short_qa"}, "tasks = 'short_qa': give a list of at least one"),
        ({**REGISTER, "tasks": []}, r"tasks = \[\]: give a list of at least one"),
        ({**REGISTER, "tasks": ["computation"]}, "task of benchmark source 'register': 'computation' is unknown"),
        ({**REGISTER, "tasks": ["short_qa"] * 2}, "tasks = .*: give each one once"),
        ({**REGISTER, "tasks": [1]}, "tasks = .1.: each must be a text"),
        ({**REGISTER, "windows": [1.5]}, r"windows = \[1.5\]: it must be a number above 0"),
        ({**REGISTER, "windows": float("nan")}, "windows = nan: it must be a number above 0"),
        ({**REGISTER, "filler": 0.9}, "filler = 0.9: it must be a number in 0..0.9"),
        ({**NEEDLES, "windows": 2.0}, "windows = 2.0: give a list of at least one"),
        ({**NEEDLES, "windows": [1, 0]}, r"windows = \[1, 0\]: each must be a number above 0"),
        ({**NEEDLES, "depths": [0, 50]}, r"depths = \[0, 50\]: each must be a number in 0..1"),
        ({**NEEDLES, "depths": [True]}, r"depths = \[True\]: each must be a number in 0..1"),
        ({**LOOGLE, "tasks": ["musique"]}, "task of benchmark source 'loogle': 'musique' is unknown"),
        ({**LOOGLE, "path": 3}, "path = 3: it must be a text"),
        ({**LONGBENCH, "revision": None}, "revision = None: it must be a text"),
        ({**NEEDLE, "words": [1.5]}, r"words = \[1.5\]: each must be a whole number"),
        ({**NEEDLE, "words": [0]}, r"words = \[0\]: each must be a whole number, at least 1"),
        ({**NEEDLE, "answer": " "}, "answer = ' ': it must be a text that is not empty"),
    ],
)
def test_a_field_that_is_wrong_is_named_in_one_line(benchmark, message):
    with pytest.raises(ValueError, match=message) as error:
        sources.checked(benchmark)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named_and_those_that_are_read_are_listed(folder):
    for one, names in zip(all_sources(folder).values(), [
        [], [], ["shortdep_qa.jsonl", "longdep_qa.jsonl"], ["musique.jsonl", "qmsum.jsonl"], ["a.txt"], ["own.jsonl"],
    ], strict=True):  # fmt: skip
        assert [path.name for path in sources.files(one)] == names
    for one in ({**LOOGLE, "path": str(folder / "no")}, {**NEEDLE, "path": str(folder / "no")},
                {"source": "questions", "path": str(folder)}, {**NEEDLE, "path": str(folder)}):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="benchmark: no such file"):
            sources.files(one)
    with pytest.raises(ValueError, match="path is empty: give the folder of texts"):
        sources.documents({**NEEDLE, "path": ""}, 1, None)


@pytest.mark.parametrize("source", sources.FIELDS)
@pytest.mark.parametrize("count", [1, 2])
def test_the_number_is_known_without_a_model_and_documents_are_the_same_each_time(tiny, folder, source, count):
    benchmark = all_sources(folder)[source]
    made = sources.documents(benchmark, count, tiny)
    assert len(made) == sources.number(benchmark, count) and made == sources.documents(benchmark, count, tiny)
    assert all(any(q.wording != "trained" for q in document.questions) for document in made)
    assert all(q.kind for document in made for q in document.questions)


@pytest.mark.parametrize("source", ["loogle", "longbench", "questions"])
def test_a_part_of_a_benchmark_is_a_sample_of_it_in_its_order_and_of_any_larger_part(tiny, folder, source):
    benchmark = all_sources(folder)[source]
    if "tasks" in benchmark:
        benchmark["tasks"] = benchmark["tasks"][:1]
    everything = sources.documents(benchmark, 0, tiny)
    parts = [sources.documents(benchmark, count, tiny) for count in range(1, len(everything) + 1)]
    assert [len(part) for part in parts] == list(range(1, len(everything) + 1)) and parts[-1] == everything
    for part, larger in zip(parts, parts[1:], strict=False):
        assert part == [document for document in larger if document in part]
    with pytest.raises(ValueError, match=f"the benchmark has {len(everything)}, give at most that, or 0 for all"):
        sources.documents(benchmark, len(everything) + 1, tiny)


@pytest.mark.parametrize("source", sources.MADE)
def test_what_is_made_needs_a_count(tiny, folder, source):
    for function in (sources.number, lambda one, count: sources.documents(one, count, tiny)):
        with pytest.raises(ValueError, match="documents = 0: must be at least 1"):
            function(all_sources(folder)[source], 0)


def test_at_most_so_many_questions_of_each_kind_are_asked_and_trained_ones_stay(tiny):
    benchmark = {**REGISTER, "tasks": ["short_qa", "multiple_information_retrieval"]}
    (whole,) = sources.documents(benchmark, 1, tiny)
    (few,) = sources.documents(benchmark, 1, tiny, questions=3)
    (more,) = sources.documents(benchmark, 1, tiny, questions=5)
    assert [q.kind for q in few.questions if q.wording != "trained"] == [k for k in benchmark["tasks"] for _ in "abc"]
    assert few.asked("trained") == whole.asked("trained") == register_of(tiny, 200, 1.5, 0.1).asked("trained")
    order = list(whole.questions)
    assert [order.index(q) for q in few.questions] == sorted(order.index(q) for q in few.questions)
    assert set(few.questions) < set(more.questions) < set(whole.questions)


def test_a_question_that_a_benchmark_asks_twice_is_not_drawn_twice(tiny, folder):
    pairs = [{"Q": "same?", "A": "a", "S": []}] * 6
    lines(folder / "shortdep_qa.jsonl", {"input": "Ada.", "title": "t", "qa_pairs": pairs})
    (document,) = sources.documents({**LOOGLE, "path": str(folder)}, 0, tiny, questions=2)
    assert len(document.questions) == 2


def test_a_document_without_a_question_is_refused(tiny):
    with pytest.raises(ValueError, match="document 'register-200' has no question of timeline_reorder: make"):
        sources.documents({**REGISTER, "tasks": ["timeline_reorder"], "windows": 0.2}, 1, tiny)


def test_loogle_and_longbench_from_a_folder_are_what_their_readers_read(tiny, folder):
    found = sources.documents({**LOOGLE, "tasks": ["shortdep_qa", "longdep_qa"], "path": str(folder)}, 0, tiny)
    read = [*read_loogle(folder / "shortdep_qa.jsonl"), *read_loogle(folder / "longdep_qa.jsonl")]
    assert [(d.name, d.text, d.title) for d in found] == [(d.name, d.text, d.title) for d in read]
    assert [[q.kind for q in d.questions] for d in found] == [["computation", "short_qa", "short_qa"]] * 10
    found = sources.documents({**LONGBENCH, "path": str(folder)}, 0, tiny)
    assert found == read_longbench(folder / "musique.jsonl")


def test_loogle_s_timelines_are_those_of_its_long_questions_alone(tiny, folder):
    row = {"title": "t", "qa_pairs": [{"Q": f"{kind}?", "A": "2,1", "S": [], "type": kind}
                                      for kind in ("computation", "timeline_reorder")]}  # fmt: skip
    without = {"title": "t", "qa_pairs": [{"Q": "Q?", "A": "a", "S": [], "type": "computation"}]}
    rows = [{**(without if i == 1 else row), "input": f"Ada {i}."} for i in range(4)]
    lines(folder / "longdep_qa.jsonl", *rows)
    benchmark = {**LOOGLE, "tasks": ["timeline_reorder"], "path": str(folder)}
    found = sources.documents(benchmark, 0, tiny)
    assert [d.text for d in found] == ["Ada 0.", "Ada 2.", "Ada 3."] and sources.number(benchmark, 2) == 2
    assert [(q.text, q.kind) for d in found for q in d.questions] == [("timeline_reorder?", "timeline_reorder")] * 3
    assert sources.files(benchmark) == (folder / "longdep_qa.jsonl",)
    with pytest.raises(ValueError, match="longdep_qa holds timeline_reorder, leave one out"):
        sources.checked({**benchmark, "tasks": ["longdep_qa", "timeline_reorder"]})


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample documents are not beside this clone")
def test_the_sample_documents_have_the_papers_types(tiny):
    benchmark = {**LOOGLE, "tasks": ["shortdep_qa", "longdep_qa"], "path": str(SAMPLES)}
    kinds = {q.kind for document in sources.documents(benchmark, 0, tiny) for q in document.questions}
    assert sources.number(benchmark, 0) == 10 and kinds == {
        "short_qa", "comprehension_and_reasoning", "computation", "multiple_information_retrieval", "timeline_reorder",
    }  # fmt: skip


def test_the_hub_is_asked_for_the_revision_and_the_commit_is_pinned(tiny, folder, monkeypatch):
    asked = []

    def loogle(task, revision=None):
        asked.append((task, revision))
        documents = tuple(read_loogle(folder / f"{task}.jsonl"))
        return hub_data.Source(documents, task, hub_data.LOOGLE, "commit-of-" + (revision or "main"))

    monkeypatch.setattr(hub_data, "loogle", loogle)
    assert len(sources.documents({**LOOGLE, "revision": "v2"}, 2, tiny)) == 2 and asked == [("shortdep_qa", "v2")]
    assert sources.pinned(LOOGLE) == {**LOOGLE, "path": "", "revision": "commit-of-main"}
    sources.pinned({**LOOGLE, "tasks": ["timeline_reorder"]})
    assert asked[-1] == ("longdep_qa", None)
    for one in (REGISTER, {**LOOGLE, "path": str(folder)}):
        assert sources.pinned(one) == one


@pytest.mark.parametrize(("given", "read", "there"), [(LOOGLE, read_loogle, 7), (LONGBENCH, read_longbench, 6)])
def test_a_folder_may_stand_in_for_the_hub_and_then_hold_fewer_documents(
    tiny, folder, monkeypatch, capsys, given, read, there
):
    (task,) = given["tasks"]
    monkeypatch.setenv(sources.INSTEAD[given["source"]], str(folder))
    monkeypatch.setattr(hub_data, given["source"], lambda *_: pytest.fail("the hub was asked"))
    assert sources.files(given) == (folder / f"{task}.jsonl",) and sources.pinned(given) == given
    assert set(sources.provenance(given)["files_sha256"]) == {f"{task}.jsonl"}
    assert sources.number(given, 3) == 3 and capsys.readouterr().err == ""
    assert sources.number(given, 20) == there
    names = [document.name for document in sources.documents(given, 20, tiny)]
    assert names == [document.name for document in read(folder / f"{task}.jsonl")]
    assert capsys.readouterr().err.count(f"holds {there} documents of {task}, not 20: all are used") == 1
    with pytest.raises(ValueError, match=f"documents = 20: the benchmark has {there}"):
        sources.number({**given, "path": str(folder)}, 20)  # a path of one's own is taken at its word
    monkeypatch.setenv(sources.INSTEAD[given["source"]], str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"no such file: .*nowhere/{task}.jsonl"):
        sources.files(given)


def test_a_needle_stands_at_its_depth_in_the_first_words_of_the_texts(tiny, folder):
    benchmark = all_sources(folder)["needle"]
    hay = (folder / "hay" / "a.txt").read_text("utf-8")
    made = sources.documents(benchmark, 2, tiny)
    assert [d.name for d in made] == ["needle-0"] * 6 + ["needle-1"] * 6
    for document in made:
        (question,) = document.questions
        words, depth = map(int, re.fullmatch(r"length_(\d+)_depth_(\d+)", question.kind).groups())
        assert document.text[slice(*question.evidence)] == "N is 7."
        assert abs(document.depth(question) - depth / 100) <= 20 / len(document.text)  # half a sentence of the hay
        without = " ".join((document.text[: question.evidence[0]] + document.text[question.evidence[1] :]).split())
        assert without in hay and len(without.split()) == words
    assert made[0].text.startswith("N is 7. Word0 ") and not made[6].text.startswith("N is 7. Word0 ")


@pytest.mark.parametrize("count", [2])
def test_a_register_s_needle_is_a_fact_about_nobody_else_at_its_length_and_depth(tiny, count):
    made = sources.documents(NEEDLES, count, tiny)
    relations = {r.name: r for r in vocabulary().relations}
    room = tiny.window - QUESTION_TOKENS
    for document in made:
        (question,) = (q for q in document.questions if q.wording == "held_out")
        windows, depth = map(float, re.fullmatch(r"length_([\d.]+)w_depth_([\d.]+)", question.kind).groups())
        needle = document.text[slice(*question.evidence)]
        (name,) = set(re.findall(r"\w+", needle)) & set(vocabulary().names)
        assert document.text.count(name) == 1 and question.answer in needle and name in question.text
        assert abs(document.depth(question) - depth / 100) <= 30 / len(document.text)  # half a sentence
        assert windows * room - 60 <= len(document_ids(tiny.tokenizer, document)) <= windows * room
        (relation,) = {q.kind for q in document.asked("trained") if name in q.text.strip("?").split()}
        wordings = [q.text for q in document.asked("trained") if q.evidence == question.evidence]
        assert wordings == [w.format(name=name) for w in relations[relation].questions]
        assert question.text in [w.format(name=name) for w in relations[relation].held_out]
        assert question.chance == 1 / len(relations[relation].values)


def test_beside_a_needle_every_trained_question_still_points_at_its_own_sentence(tiny):
    for document in sources.documents(NEEDLES, 2, tiny):
        for question in document.asked("trained"):
            sentence = document.text[slice(*question.evidence)]
            words = set(re.findall(r"\w+", sentence))
            (name,) = set(question.text.strip("?").split()) & set(vocabulary().names)
            assert sentence.count(".") == 1 and sentence.endswith(".") and {name, question.answer} <= words


def test_depths_of_one_register_share_its_fact_and_its_name(tiny):
    made = sources.documents(NEEDLES, 1, tiny)
    for length in ("0.5w", "1.5w"):
        alike = [d for d in made if d.name.endswith(length)]
        asked = {(q.text, q.answer) for d in alike for q in d.questions if q.wording == "held_out"}
        assert len(alike) == 4 and len(asked) == 1 and len({d.name for d in alike}) == 1


def test_a_register_that_names_everybody_leaves_nobody_for_a_needle(tiny):
    with pytest.raises(ValueError, match="windows = 9: so long a register names everybody, give a shorter one"):
        sources.documents({**NEEDLES, "windows": [9]}, 1, tiny)


def test_provenance_holds_the_hash_of_each_local_file(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"document": "Ada lives in Oslo.", "question": "Where?", "answer": "Oslo"}))
    said = sources.provenance({"source": "questions", "path": str(path)})
    assert said["files_sha256"] == {"asked.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sources.provenance({"source": "register", "tasks": ["short_qa"]})["files_sha256"] == {}
