"""The report page in a real browser: it renders, filters, sorts, slides and stays silent."""

from __future__ import annotations

import json
import time

import pytest
from browser import chromium, console
from made_run import make_run, write_lines
from PIL import Image

from hf_medvlm.figures import write_report


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(driver, tmp_path_factory):
    """A report of 25 studies; each test opens it anew."""
    return write_report(make_run(tmp_path_factory.mktemp("page") / "out", studies=25))


def visit(driver, path):
    driver.get(path.as_uri())
    assert console(driver) == []
    return driver


def texts(driver, selector):
    return [node.text for node in driver.find_elements("css selector", selector)]


def choose(driver, select, value):
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        select,
        value,
    )


def shown_studies(driver):
    return driver.execute_script("return found.map((study) => study.number)")


def test_the_page_answers_how_good_and_against_what(driver, page):
    visit(driver, page)
    table = driver.find_element("id", "score-table").text
    assert "0.670 – 0.750" in table and "constant normal" in table and table.count("no better than trivial") == 1
    row = driver.find_element("xpath", "//tr[contains(., 'bleu4')]")
    assert [cell.text for cell in row.find_elements("css selector", ".baseline")] == ["0.120", "0.100"]
    protocol = driver.find_element("css selector", "#score-table details p")
    assert not protocol.is_displayed()
    driver.find_element("css selector", "#score-table summary").click()
    assert protocol.is_displayed() and protocol.text == "13a tokens, cased, corpus level"


def test_every_section_is_drawn(driver, page):
    visit(driver, page)
    assert texts(driver, "nav a") == ["Scores", "Findings", "Learning", "Studies", "Run"]
    captions = driver.execute_script("return [...document.querySelectorAll('figcaption')].map((c) => c.textContent)")
    assert {"Loss", "learning rate", "Text", "cider", "Edema", "Cardiomegaly", "Pleural Effusion"} <= set(captions)
    assert driver.execute_script("return document.querySelectorAll('#roc .chart').length") == 3
    assert "undefined" in driver.find_element("id", "finding-table").text  # Fracture has no case
    assert texts(driver, ".study .badge") == ["best"] * 3 + ["worst"] * 3 + ["typical"] * 3


def test_the_errors_of_the_reports_stand_by_finding(driver, page):
    visit(driver, page)
    results = json.loads((page.parent / "test_results.json").read_text())
    driver.find_element("css selector", "#audit-box summary").click()
    row = driver.find_element("xpath", "//div[@id='audit']//tr[td='Edema']").text
    omitted = results["figures"]["audit"]["Edema"]["omitted"]
    assert f"{omitted['rate']:.3f}" in row and f"{omitted['errors']} of {omitted['of']}" in row
    examples = texts(driver, "#audit-examples li")
    assert any(line.startswith("omitted (s0") and "present" in line for line in examples)


def test_nothing_is_fetched_from_anywhere(driver, page):
    visit(driver, page)
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_the_slider_fades_the_heat_map(driver, page):
    visit(driver, page)
    assert driver.find_element("id", "studies-title").text == "What did it say, and where did it look?"
    study = driver.find_element("css selector", ".study")
    slider = study.find_element("css selector", "input[type=range]")
    before = study.find_element("tag name", "canvas").value_of_css_property("opacity")
    driver.execute_script("arguments[0].value = 5; arguments[0].dispatchEvent(new Event('input'))", slider)
    after = study.find_element("tag name", "canvas").value_of_css_property("opacity")
    assert (float(before), float(after)) == (0.55, 0.05)


def test_the_heat_map_and_the_box_lie_over_the_picture(driver, page):
    visit(driver, page)
    driver.execute_script("document.querySelector('.study').scrollIntoView()")
    stage = driver.find_element("css selector", ".viewer")
    places = [stage.find_element("tag name", tag).rect for tag in ("img", "canvas", "svg")]
    for side in ("x", "y", "width", "height"):
        assert max(p[side] for p in places) - min(p[side] for p in places) < 1
    assert driver.execute_script("return document.querySelector('.viewer img').naturalWidth") == 96
    # The map's own peak is its brightest and least transparent cell: that of `made_run` lies in the middle.
    alpha = driver.execute_script(
        "const c = document.querySelector('canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, 12, 12).data].filter((_, i) => i % 4 === 3)"
    )
    assert alpha.index(max(alpha)) in (65, 66, 77, 78) and alpha[0] < 60
    box = stage.find_element("tag name", "rect").rect
    study = driver.execute_script("return found[0]")
    scale = places[0]["width"] / 96
    assert box["width"] == pytest.approx(study["boxes"][0]["xywh"][2] * scale, abs=3)
    assert box["x"] - places[0]["x"] == pytest.approx(study["boxes"][0]["xywh"][0] * scale, abs=3)


def test_boxes_are_the_references_and_can_be_taken_off(driver, page):
    visit(driver, page)
    assert "boxes of the reference" in driver.find_element("css selector", ".study").text
    driver.execute_script("document.querySelector('.study input[type=checkbox]').click()")
    assert driver.find_element("css selector", ".study").find_elements("tag name", "rect") == []


def test_filters_agree_with_a_plain_loop_over_the_studies(driver, page):
    visit(driver, page)
    studies = json.loads(driver.execute_script("return JSON.stringify(STUDIES)"))
    assert shown_studies(driver) != [] and len(shown_studies(driver)) == 25
    sizes = []
    for finding in ("Edema", "Cardiomegaly"):
        for how in ("contradict", "missed", "added", "agree"):
            choose(driver, "finding", finding)
            choose(driver, "error", how)
            expected = {s["number"] for s in studies if [finding, how] in [[row[0], row[3]] for row in s["findings"]]}
            assert set(shown_studies(driver)) == expected
            sizes.append(len(expected))
    assert sum(size > 0 for size in sizes) > 4 and max(sizes) < 25
    choose(driver, "finding", "")
    choose(driver, "error", "none")
    clean = {s["number"] for s in studies if all(row[3] in ("agree", "unsure") for row in s["findings"])}
    assert set(shown_studies(driver)) == clean
    choose(driver, "error", "")
    choose(driver, "view", "AP")
    assert set(shown_studies(driver)) == {s["number"] for s in studies if s["images"][0]["view"] == "AP"}


def test_the_search_looks_in_both_texts(driver, page):
    visit(driver, page)
    driver.find_element("id", "search").send_keys("apical PNEUMO")
    time.sleep(0.3)
    shown = shown_studies(driver)
    lines = [json.loads(line) for line in (page.parent / "predictions.jsonl").read_text().splitlines()]
    expected = [i for i, p in enumerate(lines) if "apical pneumo" in p["reference"] + "\n" + p["prediction"]]
    assert sorted(shown) == expected and 0 < len(expected) < 25
    driver.find_element("id", "search").send_keys(" nowhere")
    time.sleep(0.3)
    assert "No study fits" in driver.find_element("id", "list").text


def test_sorting_and_pages(driver, page):
    visit(driver, page)
    choose(driver, "sort", '["bleu4",1]')
    values = driver.execute_script("return found.map((study) => study.scores.bleu4)")
    assert values == sorted(values)
    first = texts(driver, ".study h3")
    assert len(first) == 10 and "page 1 of 3" in driver.find_element("css selector", ".pager").text
    driver.find_elements("css selector", ".pager button")[1].click()
    assert not set(first) & set(texts(driver, ".study h3"))


def test_a_click_on_a_finding_shows_its_errors(driver, page):
    visit(driver, page)
    button = driver.find_element("css selector", "#finding-table .bg-contradict")
    finding, count = button.get_attribute("aria-label").split(":")[0], int(button.text.split()[-1])
    driver.execute_script("arguments[0].click()", button)
    assert len(shown_studies(driver)) == count
    assert driver.find_element("id", "finding").get_attribute("value") == finding


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_both_readable(driver, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    visit(driver, page)
    colours = driver.execute_script(
        "const s = getComputedStyle(document.body);"
        "return [s.color, s.backgroundColor].map((c) => c.match(/\\d+/g).map(Number))"
    )
    ink, ground = (_luminance(rgb[:3]) for rgb in colours)
    assert (ink < ground) == (scheme == "light")
    light, dark = max(ink, ground), min(ink, ground)
    assert (light + 0.05) / (dark + 0.05) > 7  # WCAG 2 AAA


def _luminance(rgb):
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_needs_no_sideways_scrolling(driver, page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visit(driver, page)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    picture = driver.find_element("css selector", ".viewer img").rect
    assert 300 < picture["width"] < 390
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    " **bold** {{js}} \u2028 </script>"
)


def test_hostile_studies_show_as_text_and_run_nothing(driver, tmp_path):
    folder = make_run(tmp_path / "out", studies=1)
    images = tmp_path / "images"
    names = ['it\'s "q" <b>.png', "line\nbreak.png", "größe 中文.png", "</script>.png"]
    for name in (n for n in names if "/" not in n):
        Image.new("L", (40, 30), 90).save(images / name)
    (images / "empty.png").write_bytes(b"")
    odd = [
        {"study_id": HOSTILE, "patient_id": HOSTILE, "reference": HOSTILE, "prediction": HOSTILE, "images": names},
        {"study_id": "zero", "images": ["empty.png"], "reference": "\ufffd lone", "prediction": "x"},
        {"study_id": "climbs", "images": ["../out/run.json", "/etc/passwd"], "reference": "", "prediction": ""},
        {"study_id": "bare", "images": [], "reference": "No image.", "prediction": "None."},
        {"study_id": "long", "images": ["p0.png"], "reference": "edema " * 3334, "prediction": "word" * 5000},
        {
            "study_id": "nan",
            "images": ["p0.png"],
            "scores": {"bleu4": float("nan"), HOSTILE: 0.5},
            "maps": {HOSTILE: [[1]]},
        },
    ]
    write_lines(folder / "predictions.jsonl", odd)
    visit(driver, write_report(folder))
    assert driver.title == "finetune_blip · hf_medvlm"
    assert driver.execute_script("return document.querySelectorAll('#list script, #list b:not(.chip b)').length") == 0
    choose(driver, "sort", "file")
    shown = driver.execute_script("return document.querySelector('.text').textContent")
    assert shown == HOSTILE
    gone = texts(driver, ".viewer .gone")
    assert any("zero bytes" in text for text in gone) and any("leaves the image folder" in text for text in gone)
    assert any("has no image" in text for text in gone)
    assert driver.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)")
    for number in range(len(names) - 1):  # the views of the first study: each name that a file can have is read
        driver.execute_script("document.querySelectorAll('.study .tabs button')[arguments[0]].click()", number)
        alt = driver.execute_script("return document.querySelector('.viewer img').alt")
        assert alt.startswith(f"image {number + 1}, radiograph")
    long = driver.execute_script("return [...document.querySelectorAll('.study')][4].getBoundingClientRect().height")
    assert long < 900  # twenty thousand characters scroll inside their card
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert console(driver) == []


def test_a_finding_named_as_a_property_of_every_object_breaks_nothing(driver, tmp_path):
    folder = make_run(tmp_path / "out", studies=3)
    names = ("constructor", "__proto__", "toString", "hasOwnProperty", "Edema")
    studies = [
        {
            "study_id": f"s{number}",
            "images": ["p0.png"],
            "reference": "x",
            "prediction": "y",
            "findings_reference": dict.fromkeys(names, 1),
            "findings_prediction": dict.fromkeys(names, number % 2),
            "scores": {"bleu4": 0.5} | ({"valueOf": 0.25} if number else {}),
            "maps": {"constructor": [[0, 1], [1, 0]]},
        }
        for number in range(3)
    ]
    write_lines(folder / "predictions.jsonl", studies)
    results = json.loads((folder / "test_results.json").read_text())
    results["figures"]["per_finding"] = {name: {"f1": 0.5, "n": 3} for name in names}
    results["figures"]["roc"] = {"__proto__": {"fpr": [0, 1], "tpr": [0, 1], "auc": 0.5}}
    results["metrics"] |= {"constructor": 0.25, "toString": 0.125}
    results["facts"]["valueOf"] = {"group": "Text", "better": "higher", "unit": "fraction"}
    results["baselines"]["__proto__"] = {"bleu4": 0.05}
    (folder / "test_results.json").write_text(json.dumps(results))
    visit(driver, write_report(folder))
    rows = [text for text in texts(driver, "#finding-table tr") if text]
    for name in names:
        (row,) = (row for row in rows if row.startswith(f"{name} "))
        assert "✓ 1" in row and "✗ 2" in row and "function" not in row
        choose(driver, "finding", name)
        choose(driver, "error", "contradict")
        assert len(shown_studies(driver)) == 2
        choose(driver, "error", "")
    choose(driver, "finding", "")
    choose(driver, "sort", '["valueOf",1]')
    assert shown_studies(driver) == [1, 2, 0]  # the study without the score is last
    assert "function" not in driver.find_element("tag name", "main").text
    assert driver.execute_script("return Object.keys(Object.prototype).length + Object.keys(Object).length") == 0


def test_scores_are_named_in_words_and_the_run_by_date_duration_and_commit(driver, tmp_path):
    folder = make_run(tmp_path / "out", studies=2, maps=False)
    info = json.loads((folder / "run.json").read_text())
    info |= {
        "created": "2026-11-26 10:00 UTC",
        "train_seconds": 4000.0,
        "evaluate_seconds": 12.4,
        "commit": "0a1b" * 10,
    }
    (folder / "run.json").write_text(json.dumps(info))
    visit(driver, write_report(folder))
    table = driver.find_element("id", "score-table").text
    assert "BLEU-4 bleu4" in table and "ROUGE-L rougeL" in table and "Findings F1 (micro) findings_f1_micro" in table
    assert "2026-11-26 10:00 UTC · commit 0a1b0a1b0a" in driver.find_element("id", "subtitle").text
    run = driver.find_element("id", "info").text.split("\n")
    assert run[run.index("training took") + 1] == "67 min" and run[run.index("evaluation took") + 1] == "12 s"
    assert driver.find_element("id", "studies-title").text == "What did it say?"  # there are no maps
    sort = driver.find_element("id", "sort").text
    assert "BLEU-4, worst first" in sort and "heat map" not in driver.find_element("tag name", "main").text


@pytest.mark.slow
def test_three_thousand_studies_are_drawn_ten_at_a_time(driver, tmp_path):
    folder = make_run(tmp_path / "out", studies=3000, pixels=64, maps=False)
    path = write_report(folder)
    assert path.stat().st_size < 60e6
    visit(driver, path)
    assert len(texts(driver, ".study h3")) == 10
    assert "look" not in driver.find_element("id", "studies-title").text  # there are no maps
    changes = [("finding", "Edema"), ("error", "missed"), ("view", "AP"), ("finding", ""), ("sort", '["bleu4",1]')]
    changes.append(("search", "apical"))
    # what is drawn does not grow with the run; seconds would be those of whatever else the machine does
    nodes = driver.execute_script(
        "return arguments[0].map(([id, value]) => { document.getElementById(id).value = value; update();"
        "return document.querySelectorAll('*').length; })",
        changes,
    )
    assert max(nodes) < 3000, nodes
