"""The evaluation is nothing but lift, answer and score, document by document; nothing that fails goes uncounted."""

import json

import pandas as pd
import pytest
from endpoint_server import EndpointServer, prompt_of

from liftlab import answering, records, scoring, stacked
from liftlab.failures import CellsFailed
from liftlab.lifting import lift
from liftlab.prompts import STYLES, with_evidence
from liftlab.studies import answer_scores, conditions, evaluation, sources

REGISTER = {"source": "register", "tasks": ["short_qa", "multiple_information_retrieval"], "windows": 0.5}
CHANGES = {"mixed_epochs": 1, "rank": 2, "batch_tokens": 512}
SMALL = dict(
    base="tiny", window_tokens=0, four_bit=False, benchmark=REGISTER, documents=2, questions=2,
    conditions={
        "icl": {"context": "truncated"},
        "lift": {"recipe": "micro/lora", "recipe_changes": CHANGES},
        "lift_icl": {"recipe": "micro/lora", "recipe_changes": CHANGES, "context": "truncated"},
    },
    auxiliary={"task": "known", "count": 3}, style="plain", seeds=1, answer_tokens=2, scores=["f1"], judge={},
)  # fmt: skip


@pytest.fixture
def on_tiny(tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "base_model", lambda name, window_tokens, four_bit: tiny)
    evaluation._documents.cache_clear()
    yield tiny
    evaluation._documents.cache_clear()


def run(tmp_path, **changes):
    return evaluation.run("study", **{**SMALL, **changes}, records=tmp_path)


def lifts(monkeypatch, watch=lambda job: None):
    """The jobs that are lifted from now on, after `watch(job)` of each."""
    jobs, real = [], stacked.lift

    def lift(base, asked, **settings):
        for job in asked:
            jobs.append(job)
            watch(job)
        return real(base, asked, **settings)

    monkeypatch.setattr(stacked, "lift", lift)
    return jobs


def says(monkeypatch, words):
    """`words(questions)` is what every condition answers."""

    def asking(base, lifted, document, questions, *_, **__):
        return words(questions)
        yield

    monkeypatch.setattr(evaluation, "asking", asking)


def test_the_records_are_those_of_lift_answer_and_score_by_hand(on_tiny, tmp_path):
    frame = run(tmp_path, documents=1, scores=["f1", "contains"])
    (document,) = sources.documents(REGISTER, 1, on_tiny, 2)
    questions = [q for q in document.questions if q.wording == "held_out"]
    plan = conditions.plans(SMALL["conditions"], "plain", SMALL["auxiliary"])["lift"]
    pairs, _ = conditions.pairs_of(plan, on_tiny, document, 0, tmp_path)
    lifted = lift(on_tiny, document, plan.recipe_for(0), pairs, progress=False)
    with lifted.on(on_tiny) as on:
        told = {"lift": answering.answer(on, document, questions, "none", answer_tokens=2),
                "lift_icl": answering.answer(on, document, questions, "truncated", answer_tokens=2)}  # fmt: skip
    told["icl"] = answering.answer(on_tiny, document, questions, "truncated", answer_tokens=2)
    for score in ("f1", "contains"):
        for condition, said in told.items():
            rows = frame[(frame["metric"] == score) & (frame["condition"] == condition)]
            assert list(rows["question"]) == [q.text for q in questions] and list(rows["answer"]) == said
            assert list(rows["kind"]) == [q.kind for q in questions] and set(rows["unit"]) == {"share of questions"}
            values = [getattr(scoring, score)(text, q.answer) for q, text in zip(questions, said, strict=True)]
            assert list(rows["value"]) == values
            assert list(rows["depth"]) == [document.depth(q) for q in questions]
    measures = frame[frame["condition"] == "lift"].set_index("metric")
    assert measures.loc["train_steps", "value"] == len(lifted.history)
    assert measures.loc["train_tokens", "value"] == lifted.history[-1].tokens
    assert (measures.loc["auxiliary_pairs", "value"], measures.loc["auxiliary_pairs", "unit"]) == (3, "pairs")
    chance = frame[frame["condition"] == "chance"]
    assert list(chance["value"]) == [q.chance for q in questions] and set(chance["metric"]) == {"chance"}


def test_what_is_recorded_is_read_back_whatever_was_answered(on_tiny, tmp_path, monkeypatch):
    said = ["", 'a,"b"\r\nc', "NA", "-0.0"]
    says(monkeypatch, lambda _: said)
    frame = run(tmp_path, documents=1, conditions={"icl": {}}, questions=2)
    assert list(frame.loc[frame["metric"] == "f1", "answer"]) == said
    pd.testing.assert_frame_equal(records.read(tmp_path / "study.csv")[0], frame, check_dtype=False)
    _, provenance = records.read(next((tmp_path / "study").glob("*.csv")))
    assert provenance["base_model"] == {"name": "tiny", "weights_sha256": "tiny-0"}


def test_one_lift_serves_all_conditions_that_share_it_and_each_seed_has_its_own(on_tiny, tmp_path, monkeypatch):
    jobs = lifts(monkeypatch)
    own = {"recipe": "micro/lora", "recipe_changes": CHANGES, "auxiliary": {"count": 1}}
    frame = run(tmp_path, documents=1, seeds=2, conditions={**SMALL["conditions"], "fewer": own})
    assert [job.recipe.seed for job in jobs] == [0, 1, 0, 1]
    assert [len(job.pairs) for job in jobs] == [3, 3, 1, 1]
    seeds = frame[frame["metric"] == "f1"].groupby("condition")["seed"].agg(set)
    assert seeds.to_dict() == {"icl": {0}, "lift": {0, 1}, "lift_icl": {0, 1}, "fewer": {0, 1}}
    told = frame[frame["metric"] == "auxiliary_pairs"].groupby("condition")["value"].agg(set)
    assert told.to_dict() == {"lift": {3}, "lift_icl": {3}, "fewer": {1}}


def test_a_killed_run_goes_on_at_the_document_where_it_stopped(on_tiny, tmp_path, monkeypatch):
    def stop(job):
        if job.document.name == "register-201" and fails:
            raise KeyboardInterrupt

    fails = True
    monkeypatch.setenv("LIFTLAB_AT_ONCE", "1")
    jobs = lifts(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a")
    assert not (tmp_path / "a/study.csv").exists() and len(list((tmp_path / "a/study").glob("*.csv"))) == 1
    fails = False
    jobs.clear()
    frame = run(tmp_path / "a")
    assert [job.document.name for job in jobs] == ["register-201"]
    assert list(dict.fromkeys(frame["document"])) == ["register-200", "register-201"]
    run(tmp_path / "a")
    assert len(jobs) == 1
    run(tmp_path / "b")  # and it is what an undisturbed run gives
    assert (tmp_path / "a/study.csv").read_bytes() == (tmp_path / "b/study.csv").read_bytes()


def prompts_of(monkeypatch, tiny):
    """The texts of all prompts that are answered from now on."""
    seen = []

    def answer_prompts(base, prompts, *given):
        seen.extend(tiny.tokenizer.decode(prompt) for prompt in prompts)
        return ["x"] * len(prompts)

    monkeypatch.setattr(answering, "answer_prompts", answer_prompts)
    return seen


def test_evidence_stands_in_the_prompt_and_questions_are_recorded_and_scored_without_it(on_tiny, tmp_path, monkeypatch):
    seen = prompts_of(monkeypatch, on_tiny)
    frame = run(tmp_path, documents=1, conditions={"closed": {}, "evidence": {"evidence": True}})
    (document,) = sources.documents(REGISTER, 1, on_tiny, 2)
    questions = [q for q in document.questions if q.wording == "held_out"]
    words = on_tiny.tokenizer

    def spelled(text):
        return words.decode(words(text, add_special_tokens=False)["input_ids"])

    assert len(seen) == 2 * len(questions) == 8
    for question, closed, told in zip(questions, seen[:4], seen[4:], strict=True):
        for sentence in document.evidence_of(question):
            assert spelled(sentence) in told and spelled(sentence) not in closed
        assert spelled(with_evidence(document, question, STYLES["plain"]).text) in told
    rows = frame[frame["metric"] == "f1"]
    assert list(rows["question"]) == 2 * [q.text for q in questions]


def test_raw_and_chat_ask_the_same_words_with_and_without_the_template(on_tiny, tmp_path, monkeypatch):
    seen = prompts_of(monkeypatch, on_tiny)
    run(tmp_path, documents=1, conditions={"raw": {"style": "plain_raw"}, "chat": {"style": "plain"}})
    for raw, chat in zip(seen[:4], seen[4:], strict=True):
        assert raw != chat and raw in chat and "<|user|>" in chat and "<|user|>" not in raw


def test_a_document_that_does_not_fit_has_no_rows_and_no_condition_lacks_another_s(on_tiny, tmp_path):
    long = {**REGISTER, "windows": 2.0}
    frame = run(tmp_path, documents=1, benchmark=long, conditions={"full": {"context": "full"}, "closed": {}})
    counts = frame[frame["metric"] == "f1"].groupby("condition").size()
    assert counts.to_dict() == {"closed": 4}


def test_longbench_scores_each_task_in_its_own_way_and_no_other_task(on_tiny, tmp_path, monkeypatch):
    says(monkeypatch, lambda questions: [f"{q.answer} 7" for q in questions])
    tasks = {**REGISTER, "tasks": ["narrativeqa", "qmsum", "passage_retrieval_en"], "windows": 1.0}
    frame = run(tmp_path, documents=1, benchmark=tasks, conditions={"icl": {}}, scores=["longbench"])
    rows = frame[frame["metric"] == "longbench_score"]
    (document,) = sources.documents(tasks, 1, on_tiny, 2)
    answers = {(q.kind, q.text): q.answer for q in document.questions}
    score = {"narrativeqa": scoring.f1, "qmsum": scoring.rouge_l, "passage_retrieval_en": scoring.retrieval}
    assert set(rows["kind"]) == set(score)
    for row in rows.itertuples():
        assert row.value == score[row.kind](row.answer, answers[row.kind, row.question])
    own = tmp_path / "own.jsonl"
    row = {"document": "Ada lives in Oslo.", "question": "q", "answer": "a", "kind": "other"}
    own.write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(CellsFailed, match="'longbench' is LongBench's own: task 'other' is unknown"):
        run(tmp_path, documents=0, benchmark={"source": "questions", "path": str(own)}, conditions={"icl": {}},
            scores=["longbench"])  # fmt: skip


def test_the_judge_s_verdicts_are_the_score_and_those_that_failed_are_counted(on_tiny, tmp_path, monkeypatch):
    """By hand: the first answer of a condition is right, the second gets no usable reply, the others are wrong."""
    says(monkeypatch, lambda _: ["right", "unclear", "wrong", ""])
    said = {"right": "True", "unclear": "Perhaps.", "wrong": "False."}
    with EndpointServer(lambda body: next(v for k, v in said.items() if f"answer: {k}\n" in prompt_of(body))) as server:
        judge = {"model": "judge", "endpoint": server.url}
        patched = conditions.Endpoint(server.url, "judge", attempts=2, first_wait_seconds=0.0)
        monkeypatch.setattr(answer_scores, "generator_of", lambda *_: patched)
        settings = {"documents": 1, "scores": ["f1", "judge"], "judge": judge}
        frame = run(tmp_path, **settings)
        for condition in SMALL["conditions"]:
            rows = frame[frame["condition"] == condition].set_index("metric")
            assert list(rows.loc["judge", "value"]) == [1.0, 0.0, 0.0, 0.0]
            assert rows.loc["judge_failed", "value"] == 1.0 and rows.loc["judge_failed", "unit"] == "verdicts"
        asked = server.asked.total()
        assert asked > 0 and not [body for body in server.bodies if "answer: \n" in prompt_of(body)]
        run(tmp_path, **settings, answer_tokens=3)  # other records, the same verdicts: only the failed are asked again
        assert server.asked.total() - asked == sum("unclear" in prompt_of(b) for b in server.bodies[asked:])


def test_a_rating_is_the_mean_of_four_metrics_and_those_that_failed_count_0(on_tiny, tmp_path, monkeypatch):
    """By hand: the first answer gets 8, 8, 6 and no usable completeness; the second is empty, 0 without asking."""
    says(monkeypatch, lambda questions: ["said", ""] + ["said"] * (len(questions) - 2))
    (document,) = sources.documents(REGISTER, 1, on_tiny, 2)
    questions = [q for q in document.questions if q.wording == "held_out"]

    def rated(body):
        prompt = prompt_of(body)
        if "What the document says: " in prompt:
            return "6" if any("\n".join(document.evidence_of(q)) in prompt for q in questions) else "none"
        return "Complete." if "how complete" in prompt else "8/10"

    with EndpointServer(rated) as server:
        patched = conditions.Endpoint(server.url, "judge", attempts=1, first_wait_seconds=0.0)
        monkeypatch.setattr(answer_scores, "generator_of", lambda *_: patched)
        judge = {"model": "judge", "endpoint": server.url}
        frame = run(tmp_path, documents=1, conditions={"icl": {}}, scores=["longreward", "f1"], judge=judge)
    rows = frame.set_index("metric")["value"]
    others = len(questions) - 2
    assert list(rows["longreward"]) == pytest.approx([0.55, 0.0] + [0.55] * others)
    for name, value in (("helpfulness", 0.8), ("logicality", 0.8), ("faithfulness", 0.6), ("completeness", 0.0)):
        assert list(rows[f"judge_{name}"]) == [value, 0.0] + [value] * others
    assert rows["longreward_failed"] == 1 + others and frame["metric"].iloc[1] == "longreward"


def test_orders_have_the_chance_of_the_right_items_in_any_order(on_tiny, tmp_path):
    benchmark = {**REGISTER, "tasks": ["timeline_reorder"], "windows": 1.5}
    settings = {"documents": 1, "benchmark": benchmark, "conditions": {"icl": {"context": "truncated"}}}
    for scores, levels in ((["coordinate", "f1"], [0.5, 0.5]), (["f1", "coordinate"], [])):
        frame = run(tmp_path / scores[0], scores=scores, **settings)
        assert list(frame.loc[frame["condition"] == "chance", "value"]) == levels


def test_the_base_model_judges_without_the_adapter_on_it(on_tiny, tmp_path, monkeypatch):
    named = []

    class Local:
        def __init__(self, base):
            named.append([name for name, _ in base.model.named_parameters() if "lora" in name])
            self.name = "local"

        def replies(self, requests, read):
            from liftlab.auxiliary.replies import Reply

            for (index, _), reader in zip(requests, read, strict=True):
                yield Reply(index, "True", reader("True"), attempts=1)

    monkeypatch.setattr(conditions, "LocalModel", Local)
    frame = run(tmp_path, documents=1, scores=["judge"], judge={"model": "model", "endpoint": ""})
    assert named == [[], [], []]
    assert frame.loc[frame["metric"] == "judge_failed", "value"].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 0}, "documents = 0: must be at least 1"),
        ({"questions": -1}, "questions = -1: give a whole number"),
        ({"seeds": 0}, "seeds = 0: must be at least 1"),
        ({"scores": []}, "scores = 0: must be at least 1"),
        ({"scores": ["f2"]}, "score 'f2' is unknown: choose among exact_match"),
        ({"scores": ["f1", "f1"]}, "give each score once"),
        ({"scores": ["judge"]}, "judge = {}: give model and endpoint where scores has judge or longreward"),
        ({"scores": ["longreward"]}, "judge = {}: give model and endpoint where scores has judge or longreward"),
        ({"judge": {"model": "m", "endpoint": ""}}, "judge = .*: give model and endpoint where"),
        ({"scores": ["judge"], "judge": {"model": "m", "endpoint": ""}}, "judge: model 'm' needs an endpoint"),
        ({"scores": ["judge"], "judge": {"model": "m", "endpoint": "m"}}, "endpoint: url = 'm'"),
        ({"judge": {"modl": "m"}}, "setting of judge: 'modl' is unknown"),
        ({"scores": ["longbench"]}, "score 'longbench' is LongBench's own: task 'short_qa' is unknown"),
        ({"benchmark": {"source": "squad"}}, "benchmark source 'squad' is unknown"),
        ({"conditions": {"lift": {"recipe": "mine"}}}, "recipe 'mine' is unknown"),
        ({"style": "mine"}, "style of condition 'icl': 'mine' is unknown"),
        ({"auxiliary": {"count": "all"}}, "auxiliary: count = 'all'"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded_or_kept(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "base_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, **changes)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_record_is_stale_when_any_module_that_decides_it_changes():
    """All that the study imports, but what only runs cells and keeps records."""
    from test_layers import ORDER, imported

    reached, waiting = set(), ["studies.evaluation"]
    while waiting:
        module = waiting.pop()
        if module in ORDER and module not in reached:
            reached.add(module)
            waiting += imported(module)
    keeping = {"cells", "cell_groups", "failures", "locks", "records", "provenance", "run_log", "machine"}
    assert {f"liftlab.{name}" for name in reached - keeping} <= set(evaluation.MODULES)


TASKS = {
    "benchmark": {"source": "longbench", "tasks": ["musique", "qmsum"]},
    "conditions": {"truncated_icl": {"context": "truncated"}, "lift": {"recipe": "micro/lora"}},
    "answer_tokens": 8,
}


def test_a_task_has_settings_of_its_own_and_shares_the_others():
    own = {"qmsum": {"answer_tokens": 32, "recipe": "micro/pissa"}}
    first, second = evaluation.split({**TASKS, "by_task": own})
    assert first == {**TASKS, "benchmark": {"source": "longbench", "tasks": ["musique"]}}
    assert (first["benchmark"]["tasks"], second["benchmark"]["tasks"]) == (["musique"], ["qmsum"])
    assert second["answer_tokens"] == 32 and second["conditions"]["lift"] == {"recipe": "micro/pissa"}
    assert second["conditions"]["truncated_icl"] == TASKS["conditions"]["truncated_icl"]
    assert evaluation.split({**TASKS, "by_task": {}}) == [TASKS]


@pytest.mark.parametrize(
    ("own", "said"),
    [({"narrativeqa": {}}, "'narrativeqa' is unknown"), ({"qmsum": {"scores": ["f1"]}}, "'scores' is unknown")],
)
def test_what_a_task_cannot_have_of_its_own_is_named(own, said):
    with pytest.raises(ValueError, match=said):
        evaluation.split({**TASKS, "by_task": own})
