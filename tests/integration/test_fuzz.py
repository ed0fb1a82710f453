"""A hundred of benchmarks/fuzz.py's two thousand mutated files, and forty of its answers of a
judge."""

import fuzz


def test_files_and_answers_with_mishaps():
    reports = fuzz.run(100, 40, seed=0)
    assert sum(r.counts["cases"] for r in reports) == 140 and all(
        r.counts["cases"] for r in reports
    )
    assert (
        sum(r.counts["accepted"] for r in reports) > 20
        and sum(r.counts["refused"] for r in reports) > 50
    )
    assert [(r.name, *fault) for r in reports for fault in r.faults] == []


def test_a_reader_that_leaves_something_out_is_found(monkeypatch):
    """The independent reading is one: with a reader that drops a row, or raises what it likes, the
    cases are faults."""
    import fuzz_targets
    from secondlook.data.prompts import read_prompts

    monkeypatch.setattr(fuzz_targets, "read_prompts", lambda path: read_prompts(path)[1:])
    [report] = fuzz.run(12, 0, seed=0, only="prompts/prompts.txt")
    assert report.faults and len(report.faults) == 12 - report.counts["refused"]
    monkeypatch.setattr(fuzz_targets, "read_prompts", lambda path: path.read_text()[10**9])
    [report] = fuzz.run(12, 0, seed=0, only="prompts/prompts.txt")
    assert len(report.faults) == 12
