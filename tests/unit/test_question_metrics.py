"""Benchmarks that ask questions: their rules by hand, and the published correlations from the
stored answers."""

import json
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.benchmark import Row
from secondlook.evals.dpg_bench import categories, dpg_score
from secondlook.evals.dsg import dsg_score, source_of
from secondlook.evals.pope import POPE, SPLITS, is_yes, split_scores
from secondlook.evals.scorers.questions import parents_of

DATA = Path(__file__).parents[3] / "shared" / "benchmarks"
stored = pytest.mark.skipif(not DATA.exists(), reason="the benchmarks' files are not here")


def test_zeroes_cascade_in_dpg_and_not_in_dsg():
    said = {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    parents = {1: (), 2: (1,), 3: (2,), 4: ()}
    assert dsg_score(said, parents) == 0.5  # 3's parent was answered with yes
    assert dpg_score(said, parents) == 0.25  # but is not valid itself
    assert dpg_score({3: 1.0, 2: 1.0, 1: 0.0}, {3: (2,), 2: (1,)}) == pytest.approx(
        1 / 3
    )  # in the table's order
    rows = [
        ("entity - whole (cup)", 1.0),
        ("attribute - color (cup, red)", 0.0),
        ("attribute - shape (cup, round)", 1.0),
    ]
    found = categories(rows)
    assert (
        found["attribute"] == 0.5 and found["attribute - color"] == 0.0 and found["entity"] == 1.0
    )
    assert (
        parents_of("0") == () and parents_of("1, 3") == (1, 3) and parents_of("1, outside") is None
    )


def test_an_item_of_dsg_names_its_source():
    assert [source_of(item) for item in ("tifa_12", "diffusiondb_3", "posescript")] == [
        "tifa",
        "diffusiondb",
        "posescript",
    ]


def test_answers_of_pope():
    """As the released evaluate.py reads them: the first sentence, commas away, and no is "No", "no"
    or "not" as a word."""
    for text, said in (
        ("Yes, there is.", "yes"),
        ("No.", "no"),
        ("No, there is none.", "no"),
        ("There is not", "no"),
        ("yes and no", "no"),
        ("", "yes"),
        ("NO", "yes"),  # as released
        ("There is a dog in the image.", "yes"),
        ("Yes, there is a dog. It is not on a leash.", "yes"),
        ("Nothing like that", "yes"),
    ):
        assert is_yes(text) == (said == "yes"), text
    rows = [
        Row(str(i), "is there a dog?", "random", {"image": f"{i}.png", "label": label})
        for i, label in enumerate(("yes", "yes", "no", "no"))
    ]
    found = split_scores(rows, ["yes", "no", "no", "perhaps"])
    found["f1"] = found["f1"]["mean"]
    assert found == {
        "f1": pytest.approx(0.5),
        "accuracy": 0.5,
        "yes_rate": 0.5,
        "unclear_rate": 0.25,
    }


@stored
def test_published_correlations(tmp_path):
    import correlations

    correlations.main(DATA, tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    rounded = {
        n: (round(r["spearman"], 3), round(r["kendall"], 3))
        for n, r in (found["dsg"] | found["tifa"]).items()
        if "kendall" in r
    }
    assert rounded["dsg"] == (0.463, 0.380) and rounded["cascading"] == (0.461, 0.378)
    assert rounded["without dependencies"] == (0.464, 0.378) and found["dsg"]["images"] == {
        "n": 800,
        "without answers": 5,
    }
    assert rounded["tifa_mplug-large"] == (0.592, 0.472) and rounded["tifa_blip2-flant5xl"] == (
        0.558,
        0.436,
    )
    assert rounded["clipscore_vitb32"] == (0.320, 0.231)


@stored
def test_popes_own_questions():
    rows = POPE(model="mini", data=DATA).rows()
    for split in SPLITS:
        of_split = [row for row in rows if row.task == split]
        answers = [f"{row.facts['label'].title()}." for row in of_split]
        scores = split_scores(of_split, answers)
        assert len(of_split) == 3000 and scores["f1"]["mean"] == scores["accuracy"] == 1.0


def test_files_are_fetched_once_and_checked(tmp_path, monkeypatch):
    served, text = tmp_path / "served", b"item_id,answer\n"
    source = replace(fetch.FILES["dsg/tifa160-likert-anns.csv"], sha256=sha256(text).hexdigest())
    place = served / source.repository / source.commit / source.path
    place.parent.mkdir(parents=True)
    place.write_bytes(text)
    monkeypatch.setattr(
        fetch, "FILES", {"a.csv": source, "b.csv": replace(source, sha256="0" * 64)}
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served))
    )
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        path = fetch.file("a.csv", server=address)
        place.write_bytes(b"changed")
        assert fetch.file("a.csv", server=address) == path and path.read_bytes() == text
        with pytest.raises(InputError, match="another hash"):
            fetch.file("b.csv", server=address)
        assert not list((tmp_path / "cache").rglob("b.csv*"))
        path.write_bytes(b"spoiled")
        with pytest.raises(InputError, match="hash differs"):
            fetch.file("a.csv", server=address)
        path.unlink()
        place.unlink()
        with pytest.raises(InputError, match="cannot be fetched"):
            fetch.file("a.csv", server=address)
        with pytest.raises(InputError, match="is missing"):
            fetch.file("a.csv", tmp_path)
    finally:
        server.shutdown()
