"""A dry run counts what the run then does, and says what it assumes where it cannot count."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from liftlab import costs, runner
from liftlab.evaluation_plots import NOTEBOOKS
from liftlab.models import load
from liftlab.prompts import put, style
from liftlab.studies import document_sizes, dry_run, evaluation, run_counts, sources

ROOT = Path(__file__).parents[1]
EVALUATIONS = [*NOTEBOOKS, "needle"]
SIZE = costs.Size(parameters=1000, layers=2, attention_width=8, embeddings=200)
LLAMA = "NousResearch/Meta-Llama-3-8B-Instruct"
GATED = "2502.14644v3/gated_memory/loogle"
WINDOW = {"task": "window", "count": 10, "generator": "model"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """The hub out of reach with an empty cache, and nothing kept from another test."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for kept in (document_sizes.known, document_sizes._read):
        kept.cache_clear()


def micro(**changes):
    """Parameters of a small evaluation on micro."""
    return {
        "profile": "micro", "base": "micro", "window_tokens": 0, "four_bit": False,
        "benchmark": {"source": "register", "tasks": ["short_qa"], "windows": 1.5, "filler": 0.1},
        "documents": 1, "questions": 3, "conditions": {"lift": {"recipe": "micro/lora"}},
        "auxiliary": {"task": "known_per_fact", "count": 1}, "style": "plain", "seeds": 1, "answer_tokens": 4,
        "scores": ["f1"], "judge": {},
    } | changes  # fmt: skip


def paper(**changes):
    """Parameters of a LooGLE evaluation on Llama-3."""
    loogle = {"source": "loogle", "tasks": ["longdep_qa"]}
    lift = {"recipe": GATED, "context": "truncated"}
    return micro(base=LLAMA, benchmark=loogle, documents=0, questions=0, conditions={"lift": lift}, auxiliary=WINDOW,
                 style="loogle_v1", answer_tokens=200) | changes  # fmt: skip


# --- arithmetic, worked by hand


@pytest.mark.parametrize(
    ("full", "checkpointing", "factor", "passes"), [(0, 0, 4, 3), (0, 1, 6, 4), (1, 0, 6, 3), (1, 1, 8, 4)]
)
def test_operations_of_training(full, checkpointing, factor, passes):
    """One sequence of 10 tokens: 1000 weights each time; attention 2 layers x 8 channels x 100 pairs x 4 / 2."""
    assert costs.attention(SIZE, 100) == 2 * 8 * 100 * 4 / 2 == 3200
    assert costs.training(SIZE, 10, 100, full=full, checkpointing=checkpointing) == factor * 10_000 + passes * 3200
    assert costs.reading(SIZE, 10, 100) == 20_000 + 3200


def test_bytes_and_hours():
    """4 bits and a scale of 32 for 64 weights are 0.5625 bytes; 1.5 hours at the share's peak, 0.5 of decoding."""
    assert costs.weight_bytes(SIZE, False) == 2000 and costs.weight_bytes(SIZE, True) == 800 * 0.5625 + 400
    work, steps = 1.5 * 3600 * 0.35 * 989e12, 0.5 * 3600 * 0.35 * 3.35e12 / 2000
    assert costs.hours(SIZE, work, steps, False) == pytest.approx(2)
    assert costs.record_bytes(10, 8) == 2 * 10 * (250 + 32) and costs.reply_bytes(3, 100) == 450 + 400
    assert costs.full_bytes(SIZE) == 10_000


def test_published_llama_has_the_size_of_its_paper():
    """32 layers of 32 heads of 128 channels; 128,256 tokens of 4096 channels, in and out."""
    size = run_counts.size_of(document_sizes.known(LLAMA, 0))
    assert size == costs.Size(8_030_261_248, 32, 4096, 2 * 128_256 * 4096)


# --- counted on documents that are there


@pytest.mark.parametrize(
    ("recipe", "changes", "auxiliary"),
    [
        ("micro/lora", {}, {"task": "known", "count": 5}),
        ("micro/lora", {"contextualized": True, "context_tokens": 32, "mixed_epochs": 1}, {"count": 1}),
        ("micro/gated_memory_published", {}, {"task": "known_per_fact", "count": 1}),
        ("micro/gated_memory", {"mixed_epochs": 1}, {"task": "known_per_fact", "count": 3}),
        ("micro/temp_lora", {"segment_epochs": 1}, {"count": 0}),
    ],
)
def test_counts_are_those_that_the_run_records(recipe, changes, auxiliary, tmp_path):
    given = micro(seeds=2, auxiliary=auxiliary, conditions={"lift": {"recipe": recipe, "recipe_changes": changes}})
    given["benchmark"] = {**given["benchmark"], "windows": 0.5}
    told = dry_run.of(given).table.loc["lift"]
    records = evaluation.run("t", **{k: v for k, v in given.items() if k != "profile"}, records=tmp_path)
    ran = records[records["condition"] == "lift"].groupby("metric")["value"].sum()
    assert told["steps"] == ran["train_steps"] > 0
    assert told["train_tokens"] == ran["train_tokens"] > 0
    assert told["pairs"] == ran["auxiliary_pairs"] and told["lifts"] == 2
    assert told["questions"] == (records["metric"] == "f1").sum() / 2 == 3


def test_prompts_are_as_long_as_those_put(tmp_path):
    """Closed book and whole documents exactly, truncated ones to a few tokens; a document that does not fit is not."""
    contexts = {context: {"context": context} for context in ("none", "truncated", "full")}
    base = load("micro")
    for windows in (0.5, 1.5):
        given = micro(conditions=contexts, questions=0)
        given["benchmark"] = {**given["benchmark"], "windows": windows}
        table = dry_run.of(given).table
        (document,) = sources.documents(given["benchmark"], 1, base)
        asked = [question for question in document.questions if question.wording != "trained"]
        for context in contexts:
            prompts = [put(base.tokenizer, document, q, context, base.window, 4, style("plain")) for q in asked]
            read = sum(len(prompt) for prompt in prompts if prompt)
            slack = 0 if context == "none" else 8 * len(asked)
            assert read <= table.loc[context, "prompt_tokens"] <= read + slack
            assert table.loc[context, "answer_tokens"] == 4 * sum(prompt is not None for prompt in prompts)


def test_conditions_that_share_a_lift_are_lifted_once():
    two = {"lift": {"recipe": "micro/lora"}, "lift_truncated_icl": {"recipe": "micro/lora", "context": "truncated"}}
    table = dry_run.of(micro(conditions=two)).table
    assert list(table["lifts"]) == [1, 0, 1] and table.loc["lift_truncated_icl", "steps"] == 0
    assert list(table["documents"]) == [1, 1, 1] and list(table["questions"]) == [3, 3, 3]
    summed = table.drop(index="total")[["steps", "prompt_tokens", "operations", "gpu_hours"]].sum()
    assert summed.to_dict() == pytest.approx(table.loc["total", summed.index].to_dict())


def test_equal_pairs_are_generated_once_for_two_lifts_and_again_for_another_count():
    def with_rate(rate, count):
        return {"recipe": "micro/lora", "recipe_changes": {"learning_rate": rate},
                "auxiliary": {"task": "window", "count": count}}  # fmt: skip

    three = {"a": with_rate(1e-3, 2), "b": with_rate(1e-4, 2), "c": with_rate(1e-4, 3)}
    assert list(dry_run.of(micro(conditions=three)).table["requests"]) == [2, 0, 3, 5]


def test_what_the_window_does_not_hold_would_stop_the_run():
    estimate = dry_run.of(micro(conditions={"lift": {"recipe": GATED, "recipe_changes": {"segment_tokens": 200,
                                                     "offset_tokens": 200}}}, auxiliary={"count": 0}))  # fmt: skip
    assert len(estimate.problems) == 1 and "the window of micro has 256" in estimate.problems[0]
    assert "! the run would stop: a training sequence" in estimate.text
    assert dry_run.of(micro(answer_tokens=256)).problems[0].startswith("a question with its answer takes up to ")


# --- counted on sizes


def test_loogle_by_published_sizes():
    """140 documents of 24,000 tokens: 32 segments at offset 768, each after 4096 tokens of context and 20 of
    instruction; 10 pairs that fill the window, in 5 of 8 epochs; one step an epoch."""
    estimate = dry_run.of(paper())
    row = estimate.table.loc["lift"]
    spans = sum(min(2048, 24_000 - start) for start in range(0, 24_000, 768))
    epoch = spans + 32 * (4096 + 20)
    assert row["train_tokens"] == 140 * (8 * epoch + 5 * 10 * 8192)
    assert (row["steps"], row["lifts"], row["pairs"], row["requests"]) == (140 * 8, 140, 1400, 1400)
    assert row["questions"] == pytest.approx(1101) and row["prompt_tokens"] == pytest.approx(1101 * (8192 - 200))
    assert "from published sizes, 1.3 tokens a word (assumed)" in estimate.text
    assert "configuration: published" in estimate.text


def test_pairs_of_every_sentence_by_published_sizes():
    """24,000 tokens are 800 sentences of 30; 4 pairs a step, 5 epochs, 80 tokens a pair, none of the segments."""
    given = {"task": "sentence", "count": 10, "generator": "big", "endpoint": "http://localhost:1/v1"}
    estimate = dry_run.of(paper(auxiliary=given, conditions={"lift": {"recipe": "2502.14644v4/lora/quality"}}))
    row = estimate.table.loc["lift"]
    assert (row["requests"], row["pairs"]) == (140 * 800, 140 * 8000)
    assert (row["steps"], row["train_tokens"]) == (140 * 5 * 2000, 140 * 5 * 8000 * 80)
    assert "pairs by big at http://localhost:1/v1: its own GPU hours are not counted" in estimate.lines


def test_longbench_takes_the_papers_sample_and_judges_are_told():
    given = paper(benchmark={"source": "longbench", "tasks": ["musique", "qmsum"]}, documents=48, auxiliary={},
                  conditions={"none": {}}, scores=["judge"],
                  judge={"model": "j", "endpoint": "http://localhost:1/v1"})  # fmt: skip
    estimate = dry_run.of(given)
    assert list(estimate.table.loc["none", ["documents", "questions"]]) == [96, 96]
    assert "96 requests to the judge j: its GPU hours are not counted" in estimate.lines
    timelines = {"source": "loogle", "tasks": ["timeline_reorder"]}  # 215; one verdict and four ratings each
    rated = paper(benchmark=timelines, conditions={"none": {}}, scores=["judge", "longreward"], judge=given["judge"])
    assert "1,075 requests to the judge j: its GPU hours are not counted" in dry_run.of(rated).lines


def test_a_folder_of_texts_is_counted_where_it_is_and_by_the_settings_where_not(tmp_path):
    """Words times the ratio either way: 2 lengths x 3 depths x 2 haystacks."""
    hay = {"source": "needle", "path": str(tmp_path / "texts"), "words": [100, 200], "depths": [0.0, 0.5, 1.0],
           "needle": "The key is 7.", "question": "What is the key?", "answer": "7"}  # fmt: skip
    given = paper(benchmark=hay, documents=2, conditions={"full": {"context": "full"}}, auxiliary={})
    absent = dry_run.of(given)
    assert "no folder" in absent.text and absent.table.loc["full", "documents"] == 12
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A word. " * 300, "utf-8")
    present = dry_run.of(given)
    assert "as the tokenizer is not known" in present.text and present.table.loc["full", "documents"] == 12
    words = [absent.table.loc["full", "prompt_tokens"], present.table.loc["full", "prompt_tokens"]]
    assert words[1] - words[0] == 12 * round(1.3 * 4)  # the needle's own words


# --- mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (paper(style="nonsense"), "nonsense"),
        (paper(documents=141), "give at most that"),
        (paper(benchmark={"source": "loogle", "tasks": ["other_qa"]}), "other_qa"),
        (paper(benchmark={"source": "questions", "path": "no/such.jsonl"}), "no such file: no/such.jsonl"),
        (paper(base="no/such-model"), "no/such-model"),
        (paper(base=LLAMA, benchmark=micro()["benchmark"], documents=1), "registers are sized by the tokenizer"),
        (paper(four_bit=True, conditions={"a": {"recipe": "2502.14644v3/pissa/loogle"}}), "set four_bit = false"),
        (paper(auxiliary={"task": "known", "count": 3}), "bring no pairs along"),
        (paper(conditions={"a": {"recipe": GATED, "recipe_changes": {"segment_tokens": 30_000}}}), "shorter than"),
        (micro(conditions={"a": {"recipe": "micro/gated_memory"}}, auxiliary={"count": 0}), "segments_in_mixed"),
        (micro(documents=0), "documents = 0"),
        (micro(seeds=0), "seeds = 0"),
        (paper(documents=1, benchmark={"source": "needle", "path": "no/texts", "words": [9], "depths": [60],
                                       "needle": "n", "question": "q", "answer": "a"}), "in 0..1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error(given, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dry_run.of(given)


# --- the paper profile


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_paper_setting_passes_offline_and_has_the_notebook_s_conditions(name):
    given = runner.parameters(ROOT, name, "paper", {})
    estimate = dry_run.of(given)
    assert not estimate.problems and 0 < estimate.gpu_hours < 1000
    assert list(given["conditions"]) == list(runner.notebook(ROOT, name).parameters["conditions"])


def test_all_paper_settings_add_up_with_the_weights_once():
    assert len(EVALUATIONS) == 11
    estimates = [dry_run.of(runner.parameters(ROOT, name, "paper", {})) for name in EVALUATIONS]
    line = dry_run.total(estimates)
    disk = 2 * 8_030_261_248 + sum(estimate.disk for estimate in estimates)
    assert f"{disk / 1e9:.2f} GB" in line and f"{sum(e.gpu_hours for e in estimates):.3g} GPU hours" in line


def test_other_notebooks_say_what_was_checked():
    assert dry_run.configured({"base": "micro"}).endswith("parameters and configuration alone were checked")
    assert dry_run.configured({"profile": "x"}) == "the parameters alone were checked"
    with pytest.raises(ValueError, match="unknown base model"):
        dry_run.configured({"base": "nonsense"})
