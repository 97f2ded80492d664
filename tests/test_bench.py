"""`liftlab bench`: the ways to lift do the same work in turn, and its table says what the records hold."""

import inspect
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import call, repository  # noqa: F401
from test_runner import root  # noqa: F401

from liftlab import bench_tables, cli_bench, gguf_weights, models, records, stacked
from liftlab.examples import document_ids, known_pairs
from liftlab.lifted import Step
from liftlab.recipes import Recipe, chosen
from liftlab.studies import bench, ways
from liftlab.studies.bench import Comparison
from liftlab.studies.ways import Outcome, Way
from liftlab.tables import markdown
from liftlab.worlds import register

RECIPE = chosen("", "micro", {**bench.v4_style(), "mixed_epochs": "2", "rank": "2"})
SMALL = Comparison(
    base="micro", recipe=RECIPE, documents=3, windows=0.3, tokens=0, pairs=6, rounds=4, at_once=(1, 2, 3),
    reference_documents=2, memory_gib=1.0,
)  # fmt: skip


def work(documents=3):
    made = [register(seed, 60) for seed in range(documents)]
    return [(document, known_pairs(document)[:6]) for document in made]


def history(steps=4, tokens=100, loss=1.0):
    return tuple(Step(n, 1 + 2 * (n - 1) // steps, loss / n, 0.1 * n, tokens * n // steps) for n in range(1, steps + 1))


@pytest.fixture
def lifts(monkeypatch):
    """What would be lifted, in order: (way, documents, epochs); nothing is."""
    seen = []

    def lift_all(way, load, share, recipe, memory_gib):
        seen.append((way.name, way.at_once, len(share), recipe.mixed_epochs))
        return Outcome(0.5, 1.5, (history(),) * len(share), None)

    monkeypatch.setattr(bench, "lift_all", lift_all)
    return seen


def test_every_way_is_warmed_up_then_takes_each_place_of_a_round_once(lifts):
    bench.measure(None, work(), SMALL, progress=False)
    warm, counted = lifts[:4], [lifts[4 * n : 4 * n + 4] for n in range(1, 5)]
    assert warm == [("reference", 1, 1, 1), ("fast", 1, 1, 1), ("stacked", 2, 2, 1), ("stacked", 3, 3, 1)]
    first = [("reference", 1, 2, 2), ("fast", 1, 3, 2), ("stacked", 2, 3, 2), ("stacked", 3, 3, 2)]
    assert counted[0] == first and len(lifts) == 20
    assert all(sorted(turn) == sorted(first) for turn in counted)
    assert all(len(set(at_place)) == 4 for at_place in zip(*counted, strict=True))


def test_rates_are_documents_over_seconds_with_and_without_loading(lifts):
    frame = bench.measure(None, work(), SMALL, progress=False)
    reference = frame[(frame["condition"] == "reference") & (frame["round"] == 2)].set_index("metric")
    expected = {
        "load_seconds": 0.5, "training_seconds": 1.5, "documents_per_hour": 3600 * 2 / 2.0,
        "documents_per_hour_without_load": 3600 * 2 / 1.5, "steps": 8, "tokens": 200, "tokens_per_second": 200 / 1.5,
        "last_epoch_loss": (1 / 3 + 1 / 4) / 2,
    }  # fmt: skip
    assert reference["value"].to_dict() == pytest.approx(expected)
    assert set(reference["documents"]) == {2} and set(reference["place"]) == {4}


def test_the_loss_difference_is_the_largest_relative_one_of_a_document_s_last_losses():
    fast, other = ((history(loss=loss) for loss in losses) for losses in ((1.0, 2.0, 4.0), (1.0, 2.5, 3.8)))
    difference = bench._loss_difference(Outcome(0, 1, tuple(other), None), Outcome(0, 1, tuple(fast), None))
    assert difference == pytest.approx(0.25)


@pytest.mark.parametrize("changed", [{"steps": 5}, {"tokens": 101}])
def test_ways_that_did_unlike_work_are_not_compared(changed):
    def outcomes(second):
        same = Outcome(0, 1, (history(), history()), None)
        return {Way("fast", 1, 2): same, Way("stacked", 2, 2): Outcome(0, 1, (history(), second), None)}

    ways.check_same_work(outcomes(history()))
    with pytest.raises(ValueError, match="document 2 takes 4 steps over 100 tokens in way fast, .* raise batch_tokens"):
        ways.check_same_work(outcomes(history(**changed)))


def test_the_real_ways_do_the_same_work_on_a_base_model_loaded_as_often_as_said(tiny):
    """Loaded for each document by the authors' loop, once by the others; the losses are those of the fast loop."""
    loaded = []

    def load():
        loaded.append(1)
        return replace(tiny, model=deepcopy(tiny.model))

    plan, counts, outcomes = replace(SMALL, documents=2, at_once=(1, 2)), {}, {}
    for way in plan.ways:
        loaded.clear()
        outcomes[way] = ways.lift_all(way, load, work(2), plan.recipe, plan.memory_gib)
        counts[way.name] = len(loaded)
    assert counts == {"reference": 2, "fast": 1, "stacked": 1}
    ways.check_same_work(outcomes)
    reference, fast, together = outcomes.values()
    assert [len(h) for h in fast.histories] == [4, 4]  # six pairs in batches of four, twice
    assert bench._loss_difference(together, fast) < 1e-4
    for outcome in outcomes.values():
        assert outcome.load > 0 and outcome.training > 0 and (outcome.peak is None) != torch.cuda.is_available()
    first = [h[0].loss for h in reference.histories]  # the first batch is the same: the first four pairs
    assert first == pytest.approx([h[0].loss for h in fast.histories], rel=1e-4)


def test_a_process_a_core_does_the_same_work_in_the_documents_order():
    load, share = ways.reloading(models.load("micro")), work(3)
    plan = replace(SMALL, at_once=(1, 3), reference_documents=0, processes=True)
    outcomes = {way: ways.lift_all(way, load, share, plan.recipe, plan.memory_gib) for way in plan.ways}
    assert [way.name for way in outcomes] == ["fast", "stacked", "processes"]
    ways.check_same_work(outcomes)
    fast, _, processes = outcomes.values()
    assert bench._loss_difference(processes, fast) < 1e-3
    assert processes.load > 0 and processes.training > 0


def test_processes_are_refused_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="processes: a GPU is shared .* leave this out"):
        replace(SMALL, processes=True)


def test_loading_anew_gives_another_model_with_the_same_weights_and_checks_nothing(monkeypatch):
    base = models.load("micro")
    monkeypatch.setattr(gguf_weights, "sha256", lambda *paths: pytest.fail("a checksum was computed"))
    load = ways.reloading(base)
    one, two = load(), load()
    assert one.model is not two.model and one.provenance == base.provenance and one.tokenizer is base.tokenizer
    assert not one.model.training and not any(weight.requires_grad for weight in one.model.parameters())
    theirs = one.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in base.model.state_dict().items())


def test_the_default_recipe_takes_its_examples_as_2502_14644v4_does():
    published = Recipe.preset("2502.14644v4/lora/quality")
    for base in ("micro", "smollm2"):
        recipe, own = chosen("", base, bench.v4_style()), Recipe.preset(f"{base}/lora")
        assert (recipe.batch_examples, recipe.segments_in_mixed) == (4, False)
        assert replace(own, **{name: getattr(published, name) for name in bench.V4_FIELDS}) == recipe
        assert recipe.learning_rate == own.learning_rate != published.learning_rate


def test_documents_have_the_length_and_pairs_asked_for():
    base = models.load("micro")
    for changes, tokens in (({"tokens": 300}, 300), ({"windows": 0.5}, 116)):
        for document, pairs in bench.work_of(base, replace(SMALL, **changes)):
            assert tokens - 24 <= len(document_ids(base.tokenizer, document)) <= tokens
            assert pairs == known_pairs(document)[:6]
    (document, pairs), *_ = bench.work_of(base, replace(SMALL, pairs=0))
    assert pairs == known_pairs(document)


def measured(rounds=5, reference=True, seed=0):
    """Records of a run whose rates are drawn at random, and {(condition, at_once, with load): rates}."""
    rng, rates, rows = np.random.default_rng(seed), {}, []
    known = [("fast", 1, 100), ("stacked", 16, 700), ("stacked", 4, 300)] + [("reference", 1, 40)] * reference
    for condition, at_once, level in known:
        for metric in (*bench_tables.RATES.values(), *bench_tables.MEDIANS):
            values = level * rng.lognormal(0, 0.1, rounds)
            rates[condition, at_once, metric] = values
            rows += [{"condition": condition, "at_once": at_once, "documents": 16, "round": n, "metric": metric,
                      "unit": bench.UNITS[metric], "value": value} for n, value in enumerate(values, 1)]  # fmt: skip
        if condition == "stacked":
            rows += [{**rows[-1], "round": n, "metric": "loss_difference", "value": at_once * n * 1e-6}
                     for n in range(1, rounds + 1)]  # fmt: skip
    shared = {"study": "bench", "base_model": "micro", "document": "register-200", "document_tokens": 290, "seed": 0,
              "device": "a processor", "command": "liftlab bench"}  # fmt: skip
    return records.check(pd.DataFrame(rows).assign(**shared)), rates


def test_the_summary_is_medians_over_rounds_and_of_the_ratios_within_a_round():
    frame, rates = measured()
    data = bench_tables.summary(frame.sample(frac=1, random_state=1)).set_index(["condition", "at_once"])
    assert list(data.index) == [("reference", 1), ("fast", 1), ("stacked", 4), ("stacked", 16)]
    for suffix, metric in (("", "documents_per_hour_without_load"), ("_with_load", "documents_per_hour")):
        for way, row in data.iterrows():
            own = rates[(*way, metric)]
            found = row[[f"documents_per_hour{suffix}{end}" for end in ("", "_lowest", "_highest")]]
            assert list(found) == [np.median(own), own.min(), own.max()]
            for loop in ("fast", "reference"):
                expected = np.nan if way[0] == loop else np.median(own / rates[loop, 1, metric])
                assert row[f"{loop}_ratio{suffix}"] == pytest.approx(expected, nan_ok=True)
    assert data.loc[("stacked", 16), "loss_difference"] == 5 * 16e-6
    assert data.loc[("fast", 1), "tokens"] == np.median(rates["fast", 1, "tokens"])


def test_the_table_by_hand_and_its_files_from_kept_records(tmp_path):
    frame, _ = measured(rounds=3)
    values = {("fast", 1): 100, ("stacked", 4): 250, ("stacked", 16): 1000, ("reference", 1): 50}
    for (condition, at_once), value in values.items():
        mine = (frame["condition"] == condition) & (frame["at_once"] == at_once)
        frame.loc[mine & frame["metric"].str.startswith("documents_per_hour"), "value"] = value * frame["round"]
    shown = bench_tables.save(frame, tmp_path / "bench")
    lines = (tmp_path / "bench.md").read_text("utf-8").splitlines()
    assert lines[2:6] == [
        "| authors' loop | 1 | 16 | 100 (50 to 150) | 100 (50 to 150) | 0.50 [0.50, 0.50] | - | - | 3 |",
        "| one by one | 1 | 16 | 200 (100 to 300) | 200 (100 to 300) | - | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] | 3 |",
        "| stacked | 4 | 16 | 500 (250 to 750) | 500 (250 to 750) | 2.50 [2.50, 2.50] | 5.00 [5.00, 5.00] "
        "| 5.00 [5.00, 5.00] | 3 |",
        "| stacked | 16 | 16 | 2,000 (1,000 to 3,000) | 2,000 (1,000 to 3,000) | 10.00 [10.00, 10.00] "
        "| 20.00 [20.00, 20.00] | 20.00 [20.00, 20.00] | 3 |",
    ]
    assert len(shown) == 4 and "differ from those of one by one by at most 5e-05" in " ".join(lines)
    assert lines[-2:] == ["Hardware: a processor.", "Made by: `liftlab bench`"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept, _ = records.read(records.write(frame, tmp_path / "records/bench.csv", {}))
    bench_tables.save(kept, tmp_path / "bench")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_the_table_says_what_the_data_beside_it_do_where_a_number_is_just_below_a_half(tmp_path):
    frame, _ = measured()
    frame.loc[frame["metric"] == "documents_per_hour", "value"] = 17243.49951  # 17243.5 in six digits
    bench_tables.save(frame, tmp_path / "bench")
    kept = bench_tables.table(pd.read_csv(tmp_path / "bench.csv"))
    assert "17,244" in kept.to_string() and markdown(kept) in (tmp_path / "bench.md").read_text("utf-8")


def test_a_table_without_the_authors_loop_or_with_one_round_has_dashes_and_no_interval():
    data = bench_tables.summary(measured(rounds=1, reference=False)[0])
    table = bench_tables.table(data)
    assert set(table["/ authors' loop"]) == {"-"} and "nan" not in table.to_string()
    assert not table["/ one by one"].str.contains(r"\[").any()


def test_the_command_compares_and_leaves_records_and_table(call, repository):  # noqa: F811
    words = ["--documents", "2", "--windows", "0.3", "--pairs", "3", "--rounds", "1", "--at-once", "2"]
    code, out, err = call("bench", *words, "--set", "mixed_epochs=1", "--profile", "quick", "--name", "speed")
    assert code == 0, err
    assert "figures/quick/speed.md .csv" in out and "papermill_runs/quick/records/speed.csv" in out
    assert "stacked" in out and "bench micro" in err
    kept, provenance = records.read(repository / "papermill_runs/quick/records/speed.csv")
    assert set(kept["round"]) == {1} and set(kept["document"]) == {"register-200 to register-201"}
    by_way = kept[kept["metric"].isin(["steps", "tokens"])].groupby("metric")["value"].nunique()
    assert by_way.to_dict() == {"steps": 1, "tokens": 1}
    assert provenance["settings"]["recipe"]["batch_examples"] == 4 and provenance["base_model"]["name"] == "micro"
    assert provenance["command"].startswith("liftlab bench --documents 2") and "threads" in kept["device"].iloc[0]
    table = (repository / "figures/quick/speed.md").read_text("utf-8")
    assert "| stacked | 2 | 2 |" in table and "--set mixed_epochs=1" in table
    assert len(pd.read_csv(repository / "figures/quick/speed.csv")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "rounds = 0: must be at least 1"),
        (["--documents", "0"], "documents = 0: must be at least 1"),
        (["--at-once", "1,0"], "0 at once of 16 documents: give sizes from 1 to 16"),
        (["--at-once", "4,4"], "4 at once is asked for twice"),
        (["--at-once", "4,many"], "--at-once '4,many': give whole numbers"),
        (["--documents", "8"], "16 at once of 8 documents: give sizes from 1 to 8, or more documents"),
        (["--reference-documents", "17"], "reference_documents = 17 of 16 documents: give at most 16"),
        (["--reference-documents", "0"], "--reference-documents 0: must be at least 1"),
        (["--no-reference", "--reference-documents", "2"], "which --no-reference leaves out"),
        (["--recipe", "micro/none"], "recipe 'micro/none' is unknown"),
        (["--set", "batch_example=2"], "recipe has no field 'batch_example'"),
        (["--set", "adapter=full"], "adapter = 'full' is lifted one document at a time"),
        (["--set", "batch_examples=null"], "batch_examples"),
        (["--set", "step=epoch"], "step = 'epoch'"),
        (["--windows", "1", "--tokens", "300"], "both give the documents' length"),
        (["--windows", "0"], "windows = 0.0: must be a number above 0"),
        (["--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--pairs", "-1"], "--pairs -1: must be at least 1"),
        (["--memory", "0"], "memory_gib = 0.0: must be a number above 0"),
        (["--profile", "../quick"], "--profile '../quick': give a plain name"),
        (["--name", "a b"], "--name 'a b': give a plain name"),
        (["--name", "a"], "--name 'a' is a notebook's"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_loaded_or_written(call, repository, monkeypatch, words, message):  # noqa: F811
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("a base model was loaded"))
    before = sorted(repository.rglob("*"))
    code, out, err = call("bench", *words)
    assert (code, out) == (2, "") and message in err and len(err.strip().splitlines()) == 1
    assert sorted(repository.rglob("*")) == before


def test_the_memory_for_stacked_documents_is_that_of_the_library_by_default():
    assert inspect.signature(cli_bench.bench).parameters["memory"].default == stacked.MEMORY_GIB
