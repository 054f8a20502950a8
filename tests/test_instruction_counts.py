"""The guard of the speed that needs no quiet machine: instructions of the distance and the eigen stage."""
# SPDX-License-Identifier: MIT

import json

import drivers
import instruction_counts
import pytest

import hrel_ext

RECORD = json.loads(instruction_counts.RECORD.read_text())


@pytest.mark.slow
def test_no_stage_takes_more_instructions_than_recorded():
    if hrel_ext.build_info()["isa_level"] not in ("x86-64-v3", "x86-64-v4"):
        pytest.skip("the counts are of the level x86-64-v3, which this processor does not run")
    try:
        measured = instruction_counts.measure()
    except drivers.Unavailable as reason:
        pytest.skip(str(reason))
    if reason := instruction_counts.cannot_compare(measured, RECORD):
        pytest.skip(reason)
    assert instruction_counts.grown(measured, RECORD) == []


def test_record_holds_every_stage_and_how_it_came_about():
    assert set(RECORD["counts"]) == set(instruction_counts.STAGES) and min(RECORD["counts"].values()) > 1e6
    assert RECORD["compiler"] and RECORD["valgrind"] and RECORD["environment"]["commit"] and RECORD["seed"]


def test_growth_beyond_the_tolerance_is_found_and_named():
    def scaled(factor: float) -> dict:
        return {**RECORD, "counts": {**RECORD["counts"], "eigen": round(factor * RECORD["counts"]["eigen"])}}

    assert instruction_counts.grown(scaled(1.029), RECORD) == []
    assert instruction_counts.grown(scaled(0.5), RECORD) == []
    (found,) = instruction_counts.grown(scaled(1.031), RECORD)
    assert found.startswith("eigen: ") and "3.1 % more than" in found and found.endswith("--write")


def test_another_compiler_cannot_be_compared():
    assert instruction_counts.cannot_compare(RECORD, RECORD) is None
    reason = instruction_counts.cannot_compare({**RECORD, "compiler": "Clang 99"}, RECORD)
    assert reason == (
        f"instruction_counts.json was recorded with {RECORD['compiler']}, this build is by Clang 99: cannot compare"
    )


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(drivers.Unavailable, match="valgrind, which is not on PATH"):
        instruction_counts.measure()
    with pytest.raises(drivers.Unavailable, match="stage_times is built with cmake, which is not on PATH"):
        drivers.build("stage_times")
