"""Imports go one way: a module may import only what stands above it in the README's table."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "liftlab"
NAMED = [  # in the README's table
    "documents", "benchmarks", "register_fluent", "worlds", "register_tasks", "prompts", "examples", "gguf_weights",
    "hub_weights", "hub_data", "weights", "models", "token_losses", "gated_layer", "gated_memory", "recipes",
    "adapters", "provenance", "records", "failures", "adapter_files", "lifted", "averaging", "batches", "encoding",
    "streaming", "history", "stacked_products", "stacked_prefix", "packing", "rotary", "packed_attention", "lifting",
    "reference", "shared_prefixes", "answering", "grouped_positions", "stacked_lora", "stacked_layers", "fused_layers",
    "last_layer", "stacked_memory", "stacked_training", "stacked", "machine", "text_overlap",
    "scoring", "locks", "auxiliary.replies", "auxiliary.endpoint", "auxiliary.sentences", "retrieval", "presft",
    "auxiliary.tasks", "auxiliary.local_model", "judge", "first_token", "probes.layout", "probes.gates",
    "long_perplexity", "probes.answers", "probes.oracle_gate", "probes.memorization", "probes.in_context",
    "probes.conflict", "probes.evidence_position", "probes.long_perplexity", "branches", "pretraining", "statistics",
    "laws", "published", "costs", "run_log", "cell_groups", "cells", "studies.together", "studies.registers",
    "studies.lift_vs_icl", "studies.gate_values", "studies.oracle_gate", "studies.adapters",
    "studies.memorization_vs_icl", "studies.conflict", "studies.evidence_position", "studies.segment_offset",
    "studies.many_documents", "studies.companion_methods", "studies.companions", "studies.pretrain_micro",
    "studies.sources", "studies.conditions", "studies.tuning", "studies.answer_scores", "studies.evaluation",
    "studies.document_sizes", "studies.run_counts", "studies.dry_run", "studies.inputs", "studies.timings",
    "studies.efficiency_parts", "studies.efficiency", "studies.ways", "studies.bench", "canvas", "evaluation_points",
    "evaluation_plots", "gate_plots", "probe_plots", "context_plots", "many_documents_plots", "companion_points",
    "companion_plots", "efficiency_points", "efficiency_plots", "plots", "probe_tables", "companion_tables",
    "evaluation_tables", "efficiency_tables", "tables", "bench_tables", "comparisons", "findings", "claims", "drawing",
    "bounds", "plain_yaml", "parameters", "forks", "kernels", "runner", "fork_server", "processes", "progress",
    "side_by_side", "origins", "differences", "verifying", "cli_lift", "cli_bench", "cli_status", "cli_verify", "cli",
]  # fmt: skip
PROBES = {f"probes.{path.stem}" for path in (PACKAGE / "probes").glob("[!_]*.py")}
AFTER = NAMED.index("probes.evidence_position") + 1  # where a probe stands that the table does not name
ORDER = [*NAMED[:AFTER], *sorted(PROBES - set(NAMED)), *NAMED[AFTER:]]
WITHOUT_TORCH = [
    "documents", "benchmarks", "register_fluent", "worlds", "register_tasks", "prompts", "examples", "hub_data",
    "batches", "streaming", "text_overlap", "scoring", "locks", "auxiliary.replies", "auxiliary.endpoint",
    "auxiliary.sentences", "retrieval", "auxiliary.tasks", "judge", "provenance", "records", "failures", "statistics",
    "laws", "published", "costs", "run_log", "cell_groups", "cells", "canvas", "evaluation_points", "evaluation_plots",
    "gate_plots", "probe_plots", "context_plots", "many_documents_plots", "companion_points", "companion_plots",
    "efficiency_points", "efficiency_plots", "plots", "probe_tables", "companion_tables", "evaluation_tables",
    "efficiency_tables", "tables", "bench_tables", "comparisons", "findings", "claims", "drawing", "plain_yaml",
    "parameters", "forks", "kernels", "runner", "fork_server", "processes", "progress", "side_by_side", "origins",
    "differences", "verifying", "cli_lift", "cli_bench", "cli_status", "cli_verify", "cli",
]  # fmt: skip


def imported(module):
    """The liftlab modules that `module` names in an import statement, inside functions too."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("liftlab"):
            here = node.module.removeprefix("liftlab").lstrip(".")
            names = {".".join(filter(None, (here, alias.name))) for alias in node.names}
            yield from (names & set(ORDER)) or {here}
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("liftlab.") for a in node.names if a.name.startswith("liftlab."))


def test_every_module_has_its_place():
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert {name for name in found if not name.endswith("__init__")} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_above_it(module):
    above = set(ORDER[: ORDER.index(module)])
    assert set(imported(module)) <= above


STARTED = """
import importlib, json, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            asked.append(name)
            raise ImportError(name + " is watched")

sys.meta_path.insert(0, Watch())
found = {}
for module in sys.argv[1:]:
    asked, error = [], ""
    try:
        importlib.import_module("liftlab." + module)
    except ImportError as raised:
        error = str(raised)
    found[module] = [*asked, *filter(None, [error])]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def started():
    """Of each module, started after those above it in one process without torch: what it asked for, or its error."""
    done = subprocess.run([sys.executable, "-c", STARTED, *WITHOUT_TORCH], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_module_that_must_start_without_torch_does(started, module):
    assert started[module] == []


def test_only_three_modules_train():
    trainers = {p.stem for p in PACKAGE.rglob("*.py") if re.search(r"\.backward\(\)|AdamW\(", p.read_text("utf-8"))}
    assert trainers == {"lifting", "stacked_training", "pretraining"}


def test_files_stay_short():
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 300}
    assert not long, f"over 300 lines: {long}"
