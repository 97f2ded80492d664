"""The bounds of parameters: every parameter has them, every default meets them, and their choices are the code's."""

from bad_inputs import REAL

from liftlab import bounds, parameters


def test_every_parameter_of_every_notebook_has_an_entry_that_its_default_meets():
    stated = bounds._stated()
    for path in sorted((REAL / "notebooks").glob("*.ipynb")):
        for name, default in parameters.defaults(path).items():
            assert name in stated["parameters"], f"{path.name}: {name}"
            bounds.check(name, default, path.stem)


def test_what_a_notebook_asks_beyond_the_entries_is_of_its_own_parameters():
    for name, entries in bounds._stated()["notebooks"].items():
        assert set(entries) <= set(parameters.defaults(REAL / "notebooks" / f"{name}.ipynb"))


def test_the_choices_are_those_of_the_code():
    """The file can be read without torch; what it lists is what the code knows."""
    from liftlab import prompts, register_tasks, scoring
    from liftlab.answering import CONDITIONS
    from liftlab.auxiliary.tasks import TASKS
    from liftlab.studies import answer_scores, conditions, evaluation, inputs, lift_vs_icl, sources
    from liftlab.studies.efficiency_parts import PARTS

    stated = bounds._stated()
    of, pairs = stated["parameters"], stated["$defs"]["auxiliary"]["properties"]
    extra = [answer_scores.LONGBENCH, *answer_scores.JUDGED, answer_scores.BERTSCORE]
    condition = of["conditions"]["additionalProperties"]["properties"]
    assert of["score"]["enum"] == list(scoring.SCORES)
    assert of["scores"]["items"]["enum"] == [*scoring.SCORES, *extra]
    assert of["parts"]["items"]["enum"] == list(PARTS)
    assert of["pairs_per_sentence"]["maximum"] == inputs.MOST_PAIRS
    assert set(condition) == set(conditions.Plan.__dataclass_fields__)
    assert condition["context"]["enum"] == list(prompts.CONTEXTS)
    assert pairs["task"]["enum"] == [*conditions.KNOWN, *TASKS] and set(pairs) == set(conditions.AUXILIARY)
    assert set(of["by_task"]["additionalProperties"]["properties"]) == set(evaluation.OWN)
    listed = {name: stated["notebooks"][name]["conditions"]["items"]["enum"] for name in ("lift_vs_icl",)}
    assert listed["lift_vs_icl"] == [*CONDITIONS, lift_vs_icl.SEGMENTS_ONLY]
    assert stated["notebooks"]["evidence_position"]["conditions"]["items"]["enum"] == list(CONDITIONS)
    assert of["benchmark"]["properties"]["source"]["enum"] == list(sources.FIELDS)
    for part, (source, fields) in zip(of["benchmark"]["allOf"], sources.FIELDS.items(), strict=True):
        assert part["if"]["properties"]["source"]["const"] == source
        assert part["then"]["propertyNames"]["enum"] == ["source", *fields]
        assert part["then"]["required"] == [name for name, default in fields.items() if default is None]
        tasks = part["then"].get("properties", {}).get("tasks")
        assert tasks is None or tasks["items"]["enum"] == list(sources.NAMES[source])
    assert set(register_tasks.TASKS) == set(sources.NAMES["register"])
