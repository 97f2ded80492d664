import pandas as pd
import pytest

from liftlab import records, stacked
from liftlab.examples import document_ids
from liftlab.studies import lift_vs_icl, pretrain_micro, registers

SMALL = dict(
    base="tiny", window_tokens=0, windows=[0.5, 2], documents=2, seeds=2, questions=3, recipe="micro/lora",
    recipe_changes={"mixed_epochs": 1, "rank": 2}, filler=0.1, answer_tokens=2,
    conditions=["closed_book", "truncated_icl", "full_icl", "lift", "lift_segments_only", "lift_truncated_icl"],
)  # fmt: skip


@pytest.fixture
def on_tiny(tiny, monkeypatch):
    for study in (lift_vs_icl, registers):
        monkeypatch.setattr(study, "base_model", lambda name, window_tokens: tiny)
    return tiny


def test_every_condition_document_seed_and_wording_is_recorded(on_tiny, tmp_path):
    frame = lift_vs_icl.run(**SMALL, records=tmp_path)
    exact = frame[frame["metric"] == "exact_match"]
    counts = exact.groupby(["windows", "condition"]).size()
    for (_, condition), count in counts.items():
        assert count == 2 * (2 if "lift" in condition else 1) * 3 * 2  # documents x seeds x questions x wordings
    assert set(counts.index) == {
        (w, c)
        for w in (0.5, 2.0)
        for c in SMALL["conditions"]
        if (w, c) != (2.0, "full_icl")  # does not fit
    }
    assert frame["value"].between(0, 1).all() and set(exact["value"]) <= {0.0, 1.0}
    pd.testing.assert_frame_equal(records.read(tmp_path / "lift_vs_icl.csv")[0], frame, check_dtype=False)


def test_the_same_study_again_computes_nothing_and_from_scratch_gives_the_same_bytes(on_tiny, tmp_path, monkeypatch):
    settings = {**SMALL, "documents": 1, "windows": [0.5]}
    lift_vs_icl.run(**settings, records=tmp_path / "a")
    lift_vs_icl.run(**settings, records=tmp_path / "b")
    assert (tmp_path / "a/lift_vs_icl.csv").read_bytes() == (tmp_path / "b/lift_vs_icl.csv").read_bytes()
    monkeypatch.setattr(stacked, "lift", lambda *_, **__: pytest.fail("computed again"))
    lift_vs_icl.run(**settings, records=tmp_path / "a")


@pytest.mark.parametrize("windows", [0.5, 1.0, 2.0, 4.0])
def test_a_register_takes_the_windows_it_is_asked_for(tiny, windows):
    room = tiny.window - registers.QUESTION_TOKENS
    for seed in range(4):
        tokens = len(document_ids(tiny.tokenizer, registers.register_of(tiny, seed, windows, 0.1)))
        assert windows * room - 24 <= tokens <= windows * room


def test_each_asked_fact_is_asked_in_both_wordings():
    document = pretrain_micro.register(0, 300)
    asked = registers.ask_facts(document, 10, seed=0)
    assert [q.wording for q in asked] == ["trained", "held_out"] * 10
    assert all(a.evidence == b.evidence and a.answer == b.answer for a, b in zip(asked[::2], asked[1::2], strict=True))
    assert asked == registers.ask_facts(document, 10, seed=0) != registers.ask_facts(document, 10, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 0}, "documents = 0: must be at least 1"),
        ({"conditions": ["lifted"]}, "condition 'lifted' is unknown: choose among closed_book"),
        ({"recipe": "mine"}, "recipe 'mine' is unknown"),
        ({"recipe_changes": {"rnk": 1}}, "no field 'rnk'"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lift_vs_icl.run(**{**SMALL, **changes}, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pre_training_measures_unseen_registers_and_writes_a_model_that_loads(tmp_path, monkeypatch):
    from liftlab.models import load
    from liftlab.pretraining import TRAINING_SEEDS

    monkeypatch.setattr(pretrain_micro, "Schedule", lambda **kw: _short(**kw))
    frame = pretrain_micro.run(
        steps=2,
        learning_rate=1e-3,
        seed=0,
        registers=3,
        questions=2,
        every=1,
        out=str(tmp_path / "out"),
        records=tmp_path,
    )
    accuracy = frame[frame["metric"] == "accuracy"]
    assert len(accuracy) == 2 * 2 * 3 * 2  # steps x conditions x registers x questions
    assert load(str(tmp_path / "out")).window == 256
    assert all(int(name.removeprefix("register-")) < TRAINING_SEEDS for name in frame["document"])


def _short(**settings):
    from liftlab.pretraining import Schedule

    return Schedule(**settings, registers=2, questions=2)
