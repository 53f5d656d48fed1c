"""MS-CXR's and RSNA's files in their published format become boxes of our studies."""

import json

import pytest
from make_corpora import write_image
from PIL import Image

from hf_medvlm.data.boxes import attach_boxes, read_boxes, read_ms_cxr, read_rsna
from hf_medvlm.data.prepare import prepare
from hf_medvlm.data.prepare_options import parse_options
from hf_medvlm.data.study import Study, StudyImage, read_jsonl

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
    by_image = read_rsna(rsna_csv)
    assert [box.xywh for box in by_image["r1"]] == [(264, 152, 213, 379), (562, 152, 256, 453)]
    assert by_image["r2"] == [] and by_image["r1"][0].finding == "Pneumonia"


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
        ("a.csv", "dicom_id,x\n", read_ms_cxr, "a.csv:1: no column 'category_name'"),
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


def test_a_target_that_pandas_wrote_is_read_and_another_word_is_refused(tmp_path):
    path = tmp_path / "rsna.csv"
    path.write_text("patientId,x,y,width,height,Target\np1,1.0,2.0,3.0,4.0,1.0\np2,,,,,0.0\n")
    assert {name: [box.xywh for box in boxes] for name, boxes in read_rsna(path).items()} == {
        "p1": [(1.0, 2.0, 3.0, 4.0)],
        "p2": [],
    }
    path.write_text("patientId,x,y,width,height,Target\np1,1,2,3,4,yes\n")
    with pytest.raises(ValueError, match="rsna.csv:2: Target is 'yes'"):
        read_rsna(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId,x,y,width,height,Target\np1,1,2\n", "b.csv:2: wrong number of fields"),
        ('patientId,x,y,width,height,Target\np1,"1,2,3,4,1\n', "b.csv:2: not CSV"),
        ("patientId,x,y,width,height,Target\np1,inf,2,3,4,1\n", "b.csv:2: .*four finite"),
        ("image,box\n", "no file of boxes that is known; MS-CXR has the columns"),
        ("image_id,class_name,x_min,y_min,x_max,y_max\ni,Edema,,,,\n", "b.csv:2: 'Edema' has no box"),
    ],
)
def test_broken_box_files_are_one_line(text, message, tmp_path):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_boxes(tmp_path / "b.csv")


def test_boxes_and_progression_reach_the_master_file(tmp_path):
    for n in range(3):
        write_image(tmp_path / "root" / f"i{n}.png", n, size=40)
    table = "image,patient_id,study_id,study_date,findings\n" + "".join(
        f"i{n}.png,p,{n},2020-01-0{n + 1},The lungs show something in case {n} here.\n" for n in range(3)
    )
    (tmp_path / "root" / "t.csv").write_text(table)
    vindr = (
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\ni1,R1,Pleural effusion,4,8,12,28\ni0,R1,No finding,,,,\n"
    )
    (tmp_path / "vindr.csv").write_text(vindr)
    changes = "dicom_id,consolidation_progression,pleural_effusion_progression\ni1,improving,\ni2,nan,worsening\n"
    (tmp_path / "t.csv").write_text(changes)
    out = tmp_path / "out" / "m.jsonl"
    argv = ["table", "--root", str(tmp_path / "root"), "--table", "t.csv", "--out", str(out)]
    argv += ["--boxes", str(tmp_path / "vindr.csv"), "--progression", str(tmp_path / "t.csv")]
    for more, scale in ([], 1), (["--convert", "png", "--size", "20"], 0.5):
        prepare(parse_options([*argv, *more]))
        none, boxed, last = read_jsonl(out)
        (box,) = boxed.frontal_boxes()
        assert box.xywh == tuple(scale * value for value in (4, 8, 8, 20))
        assert (box.phrase, box.finding) == ("Pleural effusion", "Pleural Effusion") and none.boxes == ()
        assert boxed.progression == {"Consolidation": "improving"}
        assert last.progression == {"Pleural Effusion": "worsening"} and last.prior_study_id == "1"
    (tmp_path / "t.csv").write_text("dicom_id,edema_progression\ni1,better\n")
    with pytest.raises(ValueError, match="t.csv:2: edema_progression is 'better'; use improving, stable, worsening"):
        prepare(parse_options(argv))
    (tmp_path / "t.csv").write_text("dicom_id,edema_progression\nx,stable\n")
    with pytest.raises(ValueError, match="none of the images and studies of the progression file"):
        prepare(parse_options(argv))
