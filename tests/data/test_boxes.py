"""MS-CXR's and RSNA's files in their published format become boxes of our studies."""

import json

import pytest
from PIL import Image

from hf_medvlm.data.boxes import attach_boxes, read_ms_cxr, read_rsna
from hf_medvlm.data.study import Study, StudyImage

BOX = ("Pneumothorax", "large left apical pneumothorax", 1400.0, 300.0, 500.0, 640.0)


@pytest.fixture
def ms_cxr_csv(tmp_path):
    path = tmp_path / "MS_CXR_Local_Alignment_v1.0.0.csv"
    path.write_text(
        "category_name,label_text,path,x,y,w,h,dicom_id,image_width,image_height\n"
        'Pneumothorax,"large left apical pneumothorax",files/p10/p1/s1/a1.jpg,1400,300,500,640,a1,2544,3056\n'
        'Pleural Effusion,"small effusion, right",files/p10/p1/s1/a1.jpg,10,20,30,40,a1,2544,3056\n'
    )
    return path


@pytest.fixture
def ms_cxr_json(tmp_path):
    path = tmp_path / "MS_CXR_Local_Alignment_v1.0.0.json"
    content = {
        "info": {},
        "categories": [{"id": 5, "name": "Pneumothorax", "supercategory": "disease"}],
        "images": [{"id": 1, "file_name": "a1.jpg", "width": 2544, "height": 3056, "path": "files/p10/p1/s1/a1.jpg"}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 5, "bbox": [1400, 300, 500, 640], "label_text": BOX[1]}
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def rsna_csv(tmp_path):
    path = tmp_path / "stage_2_train_labels.csv"
    path.write_text("patientId,x,y,width,height,Target\nr1,264.0,152.0,213.0,379.0,1\nr1,562,152,256,453,1\nr2,,,,,0\n")
    return path


def test_both_forms_of_ms_cxr_give_the_same_box(ms_cxr_csv, ms_cxr_json):
    table, coco = read_ms_cxr(ms_cxr_csv), read_ms_cxr(ms_cxr_json)
    assert table["a1"][0] == coco["a1"][0]
    box = coco["a1"][0]
    assert (box.finding, box.phrase, *box.xywh) == BOX and box.image_size == (2544, 3056)
    assert [b.finding for b in table["a1"]] == ["Pneumothorax", "Pleural Effusion"]


def test_rsna_keeps_images_without_a_box(rsna_csv):
    found = read_rsna(rsna_csv)
    assert [box.xywh for box in found["r1"]] == [(264, 152, 213, 379), (562, 152, 256, 453)]
    assert found["r2"] == [] and found["r1"][0].finding == "Pneumonia"


def test_boxes_reach_the_right_image_and_are_scaled_to_the_stored_one(ms_cxr_csv, tmp_path):
    Image.new("L", (254, 764)).save(tmp_path / "a1.png")
    studies = [
        Study("s1", "p1", images=(StudyImage("files/b2.jpg"), StudyImage("a1.png"))),
        Study("s2", "p2", images=(StudyImage("c3.jpg"),)),
    ]
    (study,) = attach_boxes(studies, read_ms_cxr(ms_cxr_csv), tmp_path)
    assert study.study_id == "s1" and [box.image for box in study.boxes] == [1, 1]
    x, y, w, h = study.boxes[0].xywh
    assert (x, w) == pytest.approx((1400 * 254 / 2544, 500 * 254 / 2544)) and (y, h) == (75, 160)
    (unscaled,) = attach_boxes(studies, read_ms_cxr(ms_cxr_csv))
    assert unscaled.boxes[0].xywh == BOX[2:]


def test_nothing_annotated_is_an_error(rsna_csv):
    with pytest.raises(ValueError, match=r"none of the 2 annotated images \(r1, r2, \.\.\.\)"):
        attach_boxes([Study("s", "p", images=(StudyImage("x.dcm"),))], read_rsna(rsna_csv))


@pytest.mark.parametrize(
    ("name", "text", "read", "match"),
    [
        ("a.txt", "", read_ms_cxr, "not '.txt'"),
        ("a.csv", "dicom_id,x\n", read_ms_cxr, "no column category_name, label_text, y, w, h; found dicom_id, x"),
        ("a.csv", "dicom_id,category_name,label_text,x,y,w,h\na,E,p,1,1,0,1\n", read_ms_cxr, "a.csv:2: box 'p'"),
        ("a.json", '{"images": []}', read_ms_cxr, "'categories'"),
        ("a.json", "{", read_ms_cxr, "not MS-CXR's JSON"),
        ("a.csv", "patientId,x,y,width,height,Target\nr,,,,,1\n", read_rsna, "a.csv:2: Target is 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, read, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        read(tmp_path / name)
