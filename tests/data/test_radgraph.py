"""RadGraph's output, in both forms, becomes the triplets of the rules."""

import json
import sys
import types

import pytest

from hf_medvlm.data.radgraph import attach_triplets, read_radgraph, run_radgraph, triplets_from_radgraph
from hf_medvlm.data.study import Study
from hf_medvlm.language.findings import extract_triplets

LONG = {
    "OBS-DP": "Observation::definitely present",
    "OBS-DA": "Observation::definitely absent",
    "OBS-U": "Observation::uncertain",
    "ANAT-DP": "Anatomy::definitely present",
}


def report(*entities):
    """Entities as (tokens, short label, [[kind, number of the entity from 1], ...]), in the order of the text."""
    return {
        "text": " ".join(tokens for tokens, _, _ in entities),
        "entities": {
            str(number): {
                "tokens": tokens,
                "label": label,
                "start_ix": number,
                "end_ix": number,
                "relations": relations,
            }
            for number, (tokens, label, relations) in enumerate(entities, start=1)
        },
    }


def lengthened(annotations):
    text = json.dumps(annotations)
    for short, long in LONG.items():
        text = text.replace(f'"{short}"', f'"{long}"')
    return json.loads(text)


# "No evidence of pneumothorax following chest tube removal."
TUBE = report(("pneumothorax", "OBS-DA", []), ("chest", "ANAT-DP", []), ("tube", "OBS-DP", [["located_at", "2"]]))
# "Small opacity in the left lower lobe, possible pneumonia; left effusion, dextrocardia, hearts and lungs clear."
LOBE = report(
    ("Small", "OBS-DP", [["modify", "2"]]),
    ("opacity", "OBS-DP", [["located_at", "5"], ["suggestive_of", "6"]]),
    ("left", "ANAT-DP", [["modify", "5"]]),
    ("lower", "ANAT-DP", [["modify", "5"]]),
    ("lobe", "ANAT-DP", []),
    ("pneumonia", "OBS-U", []),
    ("left", "ANAT-DP", []),
    ("effusion", "OBS-DP", [["located_at", "7"]]),
    ("dextrocardia", "OBS-DP", []),
    ("heart", "ANAT-DP", []),
    ("lungs", "ANAT-DP", []),
    ("clear", "OBS-DP", [["located_at", "10"], ["located_at", "11"]]),
)
EXPECTED = {
    "tube": [("pneumothorax", "unspecified", "absent"), ("tube", "other", "present")],
    "lobe": [
        ("opacity", "lower_left_lobe", "present"),
        ("eumonia", "unspecified", "uncertain"),
        ("effusion", "left_pleural", "present"),
        ("excluded_obs", "unspecified", "present"),
        ("clear", "heart_size", "present"),
        ("clear", "pulmonary", "present"),
    ],
}


@pytest.mark.parametrize("form", [lambda a: a, lengthened], ids=["RadGraph v1", "radgraph package"])
def test_both_forms_of_label(form):
    assert triplets_from_radgraph(form({"tube": TUBE, "lobe": LOBE})) == EXPECTED


def test_a_saved_file(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"p18/p18004941/s1.txt": TUBE}), encoding="utf-8")
    assert read_radgraph(path) == {"p18/p18004941/s1.txt": EXPECTED["tube"]}


def test_triplets_go_to_the_studies_of_their_reports():
    studies = [Study("50000014", "p", report="Tube."), Study("s7", "p", report="Clear."), Study("8", "p", report="x")]
    attached = attach_triplets(studies, {"p18/p18004941/s50000014.txt": EXPECTED["tube"], "s7": []})
    assert [study.triplets for study in attached] == [tuple(EXPECTED["tube"]), (), None]
    with pytest.raises(ValueError, match=r"none of the reports of the RadGraph file \(the first: s9\)"):
        attach_triplets(studies, {"s9": []})


def test_the_test_set_with_two_annotators_is_read_by_the_first():
    both = {"labeler_1": TUBE, "labeler_2": LOBE}
    assert triplets_from_radgraph({"s1": both}) == {"s1": EXPECTED["tube"]}


def test_modifiers_of_modifiers_and_loops_end():
    looping = report(
        ("opacity", "OBS-DP", [["located_at", "3"]]),
        ("left", "ANAT-DP", [["modify", "3"]]),
        ("base", "ANAT-DP", [["modify", "2"]]),
    )
    assert triplets_from_radgraph({"s": looping}) == {"s": [("opacity", "left_lower_lung", "present")]}


def test_the_rules_say_the_same_of_the_same_sentence():
    text = "Opacity in the left lower lobe. No pneumothorax."
    graph = report(
        ("Opacity", "OBS-DP", [["located_at", "4"]]),
        ("left", "ANAT-DP", [["modify", "4"]]),
        ("lower", "ANAT-DP", [["modify", "4"]]),
        ("lobe", "ANAT-DP", []),
        ("pneumothorax", "OBS-DA", []),
    )
    assert triplets_from_radgraph({"s": graph})["s"] == extract_triplets(text)


def test_the_package_is_run_with_its_own_interface(monkeypatch):
    class RadGraph:
        def __init__(self, model):
            assert model == "modern-radgraph-xl"

        def __call__(self, texts):
            assert texts == ["a", "b"]
            return lengthened({"0": TUBE, "1": LOBE})

    monkeypatch.setitem(sys.modules, "radgraph", types.SimpleNamespace(RadGraph=RadGraph))
    assert run_radgraph(("a", "b")) == [EXPECTED["tube"], EXPECTED["lobe"]]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(ImportError, match=r"hf_medvlm\[radgraph\]"):
        run_radgraph(["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no JSON"),
        ("[]", "expected an object of reports, got list"),
        ('{"s1": {"text": "a"}}', "report 's1' has no object 'entities'"),
        (
            '{"s1": {"entities": {"1": {"tokens": "a", "label": "OBS-DP"}}}}',
            "report 's1': entity '1' has no start_ix, relations",
        ),
        (json.dumps({"s1": report(("a", "OBS-XX", []))}), "report 's1': entity '1' has the label 'OBS-XX'"),
        (json.dumps({"s1": report(("a", "OBS-DP", [["located_at", "9"]]))}), "'1' has the relation .*'9'"),
        ('{"s1": {"entities": {"1": null}}}', "entity '1' is no object"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"broken.json.*{message}"):
        read_radgraph(path)
