"""The table of what is claimed of looking back: each claim from the right folder, and when it
holds."""

import json

import pytest

from secondlook.errors import InputError


def interval(mean, low=None, high=None):
    return {
        "mean": mean,
        "low": mean if low is None else low,
        "high": mean if high is None else high,
    }


def episode(task, seed, rounds):
    """``rounds``: right, yes and p(yes) of each image."""
    shown = []
    for right, yes, p_yes in rounds:
        reason = "there is a cat" if yes else "the cat at the top is blue, not red"
        shown.append({"right": right, "yes": yes, "p_yes": p_yes, "reason": reason})
    return {"task": task, "prompt": f"a photo of {task}", "seed": seed, "rounds": shown}


WRONG, RIGHT = (False, False, 0.1), (True, True, 0.9)


def write_results(folder, episodes, headline=None):
    folder.mkdir(parents=True)
    (folder / "episodes.json").write_text(json.dumps(episodes))
    (folder / "result.json").write_text(json.dumps({"headline": headline or {}}))


def run_of(tmp_path, name, over_until_yes):
    run = tmp_path / name
    headline = {
        "first": interval(0.5),
        "gain": interval(0.3, 0.2, 0.4),
        "over_until_yes": over_until_yes,
        "over_best_of_n": interval(0.1, -0.1, 0.3),
        "repaired": interval(0.8),
        "broken": interval(0.02),
        "kept": interval(0.96),
        "reason_true": interval(float("nan")),
    }
    of_rl = [episode("objects", 1, [RIGHT]), episode("counts", 2, [WRONG, RIGHT])]
    write_results(run / "rl" / "plus", of_rl, headline)
    of_sft = [episode("objects", 1, [WRONG]), episode("counts", 2, [WRONG])]
    write_results(run / "sft" / "plus", of_sft)
    third_is_right = [episode("objects", 1, [WRONG, WRONG, WRONG, RIGHT, RIGHT])]
    write_results(run / "rl" / "rounds", third_is_right)
    return run


def test_a_claim_holds_only_where_it_does_in_every_seed(tmp_path):
    import looking_back

    runs = [
        run_of(tmp_path, "seed-0", interval(0.06, 0.01, 0.1)),
        run_of(tmp_path, "seed-1", interval(0.04, 0.01, 0.1)),
    ]
    written = looking_back.write(tmp_path, runs)
    rows = {row["claim"]: row for row in written}
    of_afresh = rows["final over drawing afresh until Yes, at equal drawn codes"]
    assert of_afresh["holds_in"] == 1 and not of_afresh["holds"], "at least .05 in each"
    assert rows["final over first"]["holds"] and rows["wrong first images that end right"]["holds"]
    over_best_of_n = rows["final over best-of-N, at equal drawn codes"]
    assert not over_best_of_n["holds"], "its interval holds zero"
    assert not rows["right first images that end wrong"]["holds"], "at most .01"
    assert not rows["what its true Nos name is true"]["holds"], "no data"
    assert rows["RL's first image over SFT's"]["values"][0]["mean"] == 0.5
    assert rows["… in counting, over SFT's"]["values"][0]["mean"] == 0
    assert rows["more rounds: four over three"]["values"][0]["mean"] == 1
    assert rows["more rounds: five over four"]["values"][0]["mean"] == 0
    assert rows["words of reasons that are words"]["holds"]
    assert "… over as much further SFT" not in rows, "there was no control"
    table = (tmp_path / "looking_back.md").read_text()
    assert "| final over first | interval above 0 | 0.300 [0.200, 0.400] |" in table


def test_words_that_are_none_are_counted(tmp_path):
    import looking_back

    run = run_of(tmp_path, "seed-0", interval(0.06, 0.01, 0.1))
    path = run / "rl" / "plus" / "episodes.json"
    path.write_text(path.read_text().replace("is blue, not red", "is bluered"))
    known = looking_back.words_known(run)
    assert known["mean"] == pytest.approx(1 - 1 / 15)


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    import looking_back

    with pytest.raises(InputError, match="mini-geneval-plus"):
        looking_back.write(tmp_path, [tmp_path / "none"])
    run = run_of(tmp_path, "seed-0", interval(0.06, 0.01, 0.1))
    path = run / "sft" / "plus" / "episodes.json"
    path.write_text(json.dumps([episode("objects", 7, [WRONG])]))
    with pytest.raises(InputError, match="different prompts or seeds"):
        looking_back.write(tmp_path, [run])
    path.write_text("[{}]")
    with pytest.raises(InputError, match="eval mini-geneval-plus"):
        looking_back.write(tmp_path, [run])
