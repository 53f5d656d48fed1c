"""The demo page: over real HTTP, and in a real browser."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_families import save_family

from hf_medvlm.__main__ import main
from hf_medvlm.inference import load
from hf_medvlm.inference.demo import MOST_BYTES, Demo, make_server
from hf_medvlm.inference.search import Index

sys.path.insert(0, str(Path(__file__).parent.parent / "figures"))
from browser import chromium, console  # noqa: E402


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    done = {}

    def of(name: str):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            save_family(name, splits, folder)
            done[name] = folder
        return done[name]

    return of


@pytest.fixture(scope="module")
def files(splits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number in range(3):
        source = splits.image_folder / splits.test[number].frontal.path
        (folder / f"{number}.png").write_bytes(source.read_bytes())
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "letter.dcm").write_bytes(b"Dear colleague")
    Image.new("L", (10_000, 10_000)).save(folder / "large.png")
    return folder


@contextmanager
def served(demo: Demo):
    server = make_server(demo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def post(port: int, path: str, body: bytes, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_two_users_at_once_get_their_own_answers(saved, files):
    predictor = load(saved("dual_encoder"))
    wanted = [predictor.findings(files / f"{number}.png") for number in range(2)]
    answers: list[list[dict]] = [[], []]
    with served(Demo(predictor)) as port:

        def user(number: int) -> None:
            for _ in range(4):
                answers[number].append(post(port, "/look", (files / f"{number}.png").read_bytes())[1])

        users = [threading.Thread(target=user, args=(number,)) for number in range(2)]
        [thread.start() for thread in users]
        [thread.join() for thread in users]
    for number in range(2):
        assert len(answers[number]) == 4
        for answer in answers[number]:
            told = {finding["name"]: finding["probability"] for finding in answer["findings"]}
            assert told == pytest.approx(wanted[number], abs=1e-5)


def test_what_is_refused_is_told_in_a_sentence(saved, files):
    with served(Demo(load(saved("llava")))) as port:
        for name, told in (
            ("broken.png", "cannot be read"),
            ("letter.dcm", "cannot be read"),
            ("large.png", "10,000 x 10,000 pixels"),
        ):
            status, answer = post(port, "/look", (files / name).read_bytes())
            assert status == 422 and told in answer["error"] and "Traceback" not in answer["error"]
            assert "BytesIO" not in answer["error"]
        status, answer = post(port, "/look", b"", **{"Content-Length": str(MOST_BYTES + 1)})
        assert status == 413 and "larger than 64 MB" in answer["error"]
        seen = post(port, "/look", (files / "0.png").read_bytes())[1]
        for request, told in (
            ({"id": seen["id"], "question": " "}, "Write a question"),
            ({"id": seen["id"], "question": "x" * 3000}, "3,000 characters"),
            ({"id": "other", "question": "Is it?"}, "drop it again"),
            ([], "no JSON object"),
        ):
            status, answer = post(port, "/ask", json.dumps(request).encode())
            assert status == 422 and told in answer["error"]
        status, answer = post(port, "/ground", json.dumps({"id": seen["id"], "phrase": "effusion"}).encode())
        assert status == 200 and answer["name"] == "effusion" and answer["image"].startswith("data:image/png")
        assert post(port, "/elsewhere", b"")[0] == 404


def test_it_answers_to_its_own_page_alone(saved, files):
    with served(Demo(load(saved("blip")))) as port:
        data = (files / "0.png").read_bytes()
        assert post(port, "/look", data, Host="evil.example")[0] == 403
        assert post(port, "/look", data, Origin="http://evil.example")[0] == 403
        assert post(port, "/look", data, Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_an_index_of_another_model_is_refused(saved, files, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes((files / f"{number}.png").read_bytes())
    main(["index", str(saved("dual_encoder")), str(images), "--out", str(tmp_path / "index"), "--workers", "0"])
    demo = Demo(load(saved("dual_encoder")), Index(tmp_path / "index"))
    near = demo.look((files / "1.png").read_bytes())["neighbours"]
    assert near[0]["study_id"] == "1" and near[0]["score"] == pytest.approx(1, abs=1e-4) and near[0]["image"]
    with pytest.raises(SystemExit):
        main(["demo", str(saved("patch_ib")), "--index", str(tmp_path / "index")])
    assert "other weights" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_browser_upload_wait_see_and_ask(saved, files):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def by(driver, name: str):
        return driver.find_element(By.ID, name)

    def drop(driver, name: str) -> str:
        by(driver, "file").send_keys(str(files / name))
        WebDriverWait(driver, 60).until(lambda d: by(d, "status").text and not by(d, "status").text.endswith("…"))
        return by(driver, "status").text

    with chromium() as driver:
        predictor = load(saved("llava"))
        with served(Demo(predictor)) as port:
            driver.get(f"http://127.0.0.1:{port}/")
            assert drop(driver, "0.png") == "Done."
            assert by(driver, "image").size["width"] > 100
            assert " ".join(by(driver, "report").text.split()) == " ".join(predictor.report(files / "0.png").split())
            by(driver, "question").send_keys("Is there an effusion?")
            by(driver, "ask").submit()
            WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.CLASS_NAME, "answer"))
            assert "Is there an effusion?" in by(driver, "answers").text
            driver.execute_script("arguments[0].value = ''", by(driver, "file"))
            assert "cannot be read" in drop(driver, "broken.png")
            assert not by(driver, "stage").is_displayed()
            driver.execute_script("arguments[0].value = ''", by(driver, "file"))
            assert "10,000 x 10,000 pixels" in drop(driver, "large.png")
            assert not [line for line in console(driver) if "422" not in line], "the refusals alone"
        predictor = load(saved("biovil_t"))
        with served(Demo(predictor)) as port:
            driver.get(f"http://127.0.0.1:{port}/")
            assert drop(driver, "1.png") == "Done."
            likely = predictor.findings(files / "1.png")
            rows = by(driver, "findings").find_elements(By.TAG_NAME, "tr")
            assert len(rows) == len(likely)
            by(driver, "phrase").send_keys("left pleural effusion")
            by(driver, "ground").submit()
            WebDriverWait(driver, 60).until(lambda d: by(d, "heat").is_displayed())
            before = by(driver, "heat").value_of_css_property("opacity")
            driver.execute_script(
                "arguments[0].value = 20; arguments[0].dispatchEvent(new Event('input'))", by(driver, "slider")
            )
            assert float(by(driver, "heat").value_of_css_property("opacity")) == pytest.approx(0.2) != float(before)
            assert not console(driver)
    assert np.isfinite(list(likely.values())).all()
