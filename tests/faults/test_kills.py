"""Runs under real faults, each in processes of its own; `make faults` kills many more."""

import resource

import kills
import pytest

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed():
    """(hash of the undisturbed run, its seconds)."""
    return kills.undisturbed()


def test_a_killed_run_goes_on_to_the_undisturbed_runs_records(undisturbed):
    wanted, seconds = undisturbed
    assert kills.killed(0, 0.8 * seconds, "all", wanted).survived


def test_two_runs_at_once_compute_each_cell_once_and_both_end_well(undisturbed, tmp_path):
    folder = kills.prepared(tmp_path)
    first, second = kills.started(folder), kills.started(folder)
    assert (first.wait(kills.LONGEST), second.wait(kills.LONGEST)) == (0, 0), (folder / "output.txt").read_text()
    assert kills.digest(folder) == undisturbed[0]
    assert kills.left_behind(folder) == 0


def test_a_full_disk_ends_a_run_with_one_line_and_it_goes_on_when_there_is_room(undisturbed, tmp_path):
    """A file may hold no more than 4,000 bytes: a cell's table is larger."""
    folder = kills.prepared(tmp_path)
    full = kills.started(folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY)))
    assert full.wait(kills.LONGEST) == 1
    said = (folder / "output.txt").read_text()
    assert "File too large" in said and "Traceback" not in said
    assert kills.left_behind(folder) == 0 and not (folder / "figures").exists()
    assert kills.finished(folder) == 0
    assert kills.digest(folder) == undisturbed[0]
