"""Runs under real faults, each in processes of its own; `make faults` kills many more."""

import resource
from functools import partial

import kills
import pytest

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed():
    """(hash of the undisturbed run, its seconds)."""
    return kills.undisturbed()


def test_a_killed_run_goes_on_to_the_undisturbed_runs_records(undisturbed):
    wanted, seconds = undisturbed  # which the first run of all may have spent on imports from a cold disk
    assert kills.killed(0, 0.5 * seconds, "all", wanted).survived


def test_two_runs_at_once_compute_each_cell_once_and_both_end_well(undisturbed, tmp_path):
    folder = kills.prepared(tmp_path)
    first, second = kills.started(folder), kills.started(folder)
    assert (first.wait(kills.LONGEST), second.wait(kills.LONGEST)) == (0, 0), (folder / "output.txt").read_text()
    assert kills.digest(folder) == undisturbed[0]
    assert kills.left_behind(folder) == 0


def test_what_does_not_fit_on_the_disk_ends_a_run_in_one_line_and_it_goes_on_where_there_is_room(undisturbed, tmp_path):
    """No file may hold more than `most` bytes: the notebook has no room, then the joined table, at last all has."""
    folder = kills.prepared(tmp_path)
    for most, code in ((4000, 2), (30000, 1)):
        (folder / "output.txt").unlink(missing_ok=True)
        full = kills.started(folder, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY)))
        assert full.wait(kills.LONGEST) == code
        said = (folder / "output.txt").read_text()
        assert "File too large" in said and "Traceback" not in said
        assert kills.left_behind(folder) == 0 and not (folder / "figures").exists()
    assert kills.finished(folder) == 0
    assert kills.digest(folder) == undisturbed[0]
