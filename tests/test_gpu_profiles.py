"""What is prepared for a GPU goes, at a tiny size, through the code that its notebooks call, with its own settings."""

import ast
import json
from pathlib import Path

import pytest

from liftlab import machine, models, records, runner
from liftlab.auxiliary.local_model import LocalModel
from liftlab.plots import DRAWINGS
from liftlab.recipes import Recipe
from liftlab.studies import efficiency

ROOT = Path(__file__).parents[1]
SMOLLM2 = [name for name in runner.runs_under(ROOT, "smollm2") if name != "claims"]
BASE = "random:llama-tiny"  # 0.6 million weights, a window of 512 tokens
SMALL = {"mixed_epochs": 1, "segment_tokens": 32, "offset_tokens": 12}
TINY = {"documents": 1, "groups": 1, "seeds": 1, "questions": 1, "answer_tokens": 1, "cues": 1, "every": 1000}
SHORT = {"windows": 0.5, "window_tokens": 512, "segment_epochs": 1, "count": 1, "context_tokens": 32}  # at most
KINDS = ["timeline_reorder", "comprehension_and_reasoning", "computation", "multiple_information_retrieval"]
REPLIES = {  # by how a reply begins: what a model would go on with
    '{"evidence": "': 'Ada 1 keeps a shop in 1.", "question": "Where does Ada 1 keep a shop?", "answer": "in 1"}',
    '{"events": ["': 'Ada 1 keeps a shop", "Ada 2 keeps a shop", "Ada 3 keeps a shop"]}',
}
LONGBENCH = ["musique", "narrativeqa", "qmsum", "gov_report", "passage_retrieval_en"]


def small(value, key=""):
    """The same setting for one short document, one epoch, one pair and one token of answer; names and forms stay."""
    if key == "recipe_changes":
        return {name: small(item, name) for name, item in value.items()} | SMALL
    if isinstance(value, dict):
        lifted = {"recipe_changes": SMALL | ranked(value["recipe"], value)} if "recipe" in value else {}
        return {name: small(item, name) for name, item in (value | lifted).items()}
    if isinstance(value, list) and key in ("windows", "depths", "sizes", "ratios"):
        return [0.5] if key == "windows" else value[:2]
    if key in SHORT and not isinstance(value, bool):
        return min(value, SHORT[key])
    return TINY.get(key, value)


def ranked(recipe, condition):
    """The condition's own changes, with a rank that a tiny model has."""
    adapter = Recipe.preset(recipe).adapter
    return condition.get("recipe_changes", {}) | ({"rank": 4} if adapter in ("lora", "pissa") else {})


def settings(name):
    """The profile's parameters for `name`, made small, on a model without weights of its own."""
    values = runner.parameters(ROOT, name, "smollm2", {})
    made = {key: small(value, key) for key, value in values.items()} | {"base": BASE}
    if name == "companions":
        text = {"segment_tokens": 32, "offset_tokens": 32, "segment_epochs": 1}
        made["changes"] = {"lift": SMALL, "raw_text": text, "temp_lora": text}
    if name == "many_documents":
        made["recipe_changes"] |= {"mixed_epochs": 2}  # a multiple of both sizes
    if name == "conflict":
        made["questions"] = 6  # of which some can be edited
    if name == "segment_offset":
        del made["recipe_changes"]["offset_tokens"]  # of which the study has its own
    return made


def study_of(name):
    """The notebook's call of its study, compiled, after the imports that it needs."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][1:]
    wanted = [source for source in code if source.startswith(("from ", "records = "))]
    return compile(ast.parse("\n".join(wanted)), name, "exec")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository's folders, with LooGLE and LongBench in place of the hub, and a generator that replies at once."""
    said = lambda self, jobs, attempt: [REPLIES[job.request.opening] for job in jobs]  # noqa: E731
    monkeypatch.setattr(LocalModel, "_generate", said)
    for folder in ("notebooks", "papermill_runs"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    text = [
        " ".join(f"Ada {word} keeps a shop in {word}." for word in range(15 * part, 15 * part + 15)) for part in (0, 1)
    ]
    pairs = [{"Q": f"Where is {kind}?", "A": "in 1", "S": ["Ada 1 keeps a shop in 1."], "type": kind} for kind in KINDS]
    for task in ("shortdep_qa", "longdep_qa"):
        lines(tmp_path / f"{task}.jsonl", [{"input": t, "title": t[:8], "qa_pairs": pairs} for t in text])
    for task in LONGBENCH:
        row = {"input": "Where?", "context": text[0], "answers": ["Paragraph 1"], "dataset": task, "_id": task}
        lines(tmp_path / f"{task}.jsonl", [row])
    for variable in ("LIFTLAB_LOOGLE", "LIFTLAB_LONGBENCH"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", SMOLLM2)
def test_a_notebook_s_settings_for_a_gpu_give_records_that_are_drawn(place, name):
    given = settings(name)
    space = dict(given)
    exec(study_of(name), space)
    frame = space["records"]
    records.check(frame)
    assert set(frame["base_model"]) == {BASE} and len(frame) > 3
    figure, data = DRAWINGS[name](frame)
    assert len(data) and figure.axes


def test_the_published_scale_s_settings_time_every_part_but_memory(place, monkeypatch):
    """Memory is left out: it starts processes of its own, and has a test in test_efficiency."""
    monkeypatch.setattr(machine, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 2**20})
    given = runner.parameters(ROOT, "efficiency", "llama3_timing", {})
    fewer = {
        "base": BASE, "input_tokens": [150, 600], "output_tokens": [1, 3], "long_input_tokens": 200, "at_once": [1, 2],
        "generation_seconds_per_pair": 0.0, "repeats": 1, "memory_gib": 2.0,
        "recipe_changes": given["recipe_changes"] | {"rank": 4}, "parts": [p for p in given["parts"] if p != "memory"],
    }  # fmt: skip
    space = given | fewer
    exec(study_of("efficiency"), space)
    frame = space["records"]
    assert set(frame["part"]) == set(efficiency.PARTS) - {"memory"}
    assert set(frame.loc[frame["outcome"] != "measured", "condition"]) == {"icl"}  # 600 tokens are beyond the window
    DRAWINGS["efficiency"](frame)


def test_the_published_scale_s_lengths_fit_its_window_and_come_before_any_other():
    given = runner.parameters(ROOT, "efficiency", "llama3_timing", {})
    window = models.configuration(given["base"]).window
    assert given["input_tokens"][:8] == [1000 * count for count in range(1, 9)] and given["input_tokens"][7] < window
    assert given["long_input_tokens"] + given["output_tokens"][-1] < window and given["output_tokens"][-1] == 4000
    recipe = Recipe.preset("2502.14644v4/lora/timing", **given["recipe_changes"])
    assert (recipe.rank, recipe.streams) == (128, True) and recipe.segment_tokens < given["long_input_tokens"]


@pytest.mark.parametrize("name", SMOLLM2)
def test_what_an_interval_is_drawn_of_is_20_documents(name):
    given = runner.parameters(ROOT, name, "smollm2", {})
    assert given["base"] == "smollm2" and given.get("documents", given.get("groups")) == 20
    lengths = given.get("windows") or given["benchmark"].get("windows")
    if isinstance(lengths, list):
        assert lengths == [1.0, 2.0, 4.0]


def test_every_notebook_runs_under_the_profile_but_those_that_say_why_not():
    """lift_vs_icl and adapters score exact matches, which a model that answers in sentences has none of."""
    others = {"lift_vs_icl", "adapters", "efficiency", "pretrain_micro"}
    assert {known.name for known in runner.notebooks(ROOT)} - {*SMOLLM2, "claims"} == others
    assert runner.first_of(ROOT, "smollm2") == SMOLLM2
