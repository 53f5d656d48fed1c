"""MIMIC-CXR's section rules, one by one, in texts of its format; sentences of reports."""

from collections import Counter

import pytest

from hf_medvlm.language import sections
from hf_medvlm.language.sections import (
    _EXACT,
    Section,
    readable_text,
    select_sections,
    sentences,
    split_sections,
)

# Every line begins with one space, and an "empty" one holds it alone.
TYPICAL = "\n".join(
    (
        "                                 FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion",
        " ",
        " TECHNIQUE:  Chest PA and lateral",
        " ",
        " COMPARISON:  ___",
        " ",
        " FINDINGS: ",
        " ",
        " Cardiac size cannot be evaluated.  Large left pleural effusion is new.",
        " Small right effusion is new.",
        " ",
        " IMPRESSION: ",
        " ",
        " Large left pleural effusion",
        "",
    )
)


def names(text):
    return [section.name for section in split_sections(text)]


def test_a_typical_report():
    assert names(TYPICAL) == [
        *("preamble", "examination", "indication", "technique", "comparison", "findings", "impression")
    ]
    parts = select_sections(TYPICAL)
    assert parts["impression"] == "Large left pleural effusion"
    assert parts["findings"].startswith("Cardiac size cannot") and parts["findings"].endswith("right effusion is new.")
    assert (parts["comparison"], parts["last_paragraph"], parts["history"]) == ("___", "", "")


def test_the_text_of_a_section_stands_where_it_says():
    for name, text, start in split_sections(TYPICAL):
        assert TYPICAL[start : start + len(text)] == text, name


# Rule 1: a newline, exactly one space, capitals, a colon, one white space.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n FINDINGS: clear", ["preamble", "findings"]),
        ("\n  FINDINGS: clear", ["preamble", "findings"]),  # what follows the space may begin with one
        ("\nFINDINGS: clear", ["full report"]),
        (" FINDINGS: clear", ["full report"]),
        ("\n Findings: clear", ["full report"]),
        ("\n FINDINGS:clear", ["full report"]),
        ("\n WET READ: ___ 5 PM", ["preamble", "wet read"]),
        ("", ["full report"]),
    ],
)
def test_what_is_a_header(text, expected):
    assert names(text) == expected


def test_a_text_without_headers_is_one_section():
    assert split_sections("Clear lungs.") == [Section("full report", "Clear lungs.", 0)]


# Rule 3: the white space of a header that ends its line is the newline that the next search would begin at.
def test_a_header_right_below_a_bare_header_goes_unseen():
    assert names("\n FINDINGS:\n IMPRESSION: no\n") == ["preamble", "findings"]
    assert select_sections("\n FINDINGS:\n IMPRESSION: no\n")["findings"] == "IMPRESSION: no"


def test_with_an_empty_line_between_it_is_seen_and_the_empty_findings_go():
    assert names("\n CHEST, PA LATERAL:\n \n INDICATION: cough\n") == ["preamble", "indication"]


def test_a_header_below_a_header_with_text_is_seen():
    assert names("\n FINDINGS: clear\n IMPRESSION: no\n") == ["preamble", "findings", "impression"]


# Rule 5: names.
@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("CONCLUSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("NDICATION", "impression"),
        ("CLINICAL INFORMATION", "history"),
        ("PFI", "history"),
        ("REASON FOR EXAM", "indication"),
        ("COMPARISONS", "comparison"),
        ("CHEST, TWO VIEWS", "findings"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("FINAL IMPRESSION", "impression"),
        ("ADDITIONAL FINDINGS", "findings"),
        ("IMPRESSION AND FINDINGS", "impression"),
        ("AP CHEST", "findings"),
        ("LEFT RIBS", "findings"),
        ("PORTABLE SEMI-UPRIGHT RADIOGRAPH", "findings"),
        ("COMPARISON FINDINGS", "findings"),
        ("NOTE", "note"),
    ],
)
def test_names_are_normalised(header, name):
    assert names(f"\n {header}: text\n")[1] == name


def test_the_table_of_names_has_the_published_size():
    sizes = Counter(_EXACT.values())
    assert len(_EXACT) == 58
    assert [sizes[name] for name in ("impression", "findings", "comparison", "indication", "history")] == [
        15,
        10,
        9,
        5,
        5,
    ]
    assert [sizes[name] for name in ("examination", "recommendations", "wet read", "technique")] == [3, 3, 2, 1]


# Rules 6 to 8.
def test_of_two_sections_of_one_name_the_last_counts():
    parts = select_sections("\n IMPRESSION: old\n \n ADDENDUM: note\n \n IMPRESSION: new\n")
    assert parts["impression"] == "new"


def test_an_empty_last_impression_is_dropped_before_the_last_is_taken():
    assert select_sections("\n IMPRESSION: old\n \n IMPRESSION:  \n \n")["impression"] == "old"


def test_the_last_paragraph_is_what_follows_the_first_blank_line_of_the_last_section():
    text = "\n INDICATION: cough\n \n The lungs are clear.\n \n No effusion.\n"
    *_, indication, last = split_sections(text)
    assert (indication.name, indication.text) == ("indication", "cough")
    assert last == Section("last_paragraph", " The lungs are clear.\n \n No effusion.\n", text.index(" The"))
    assert select_sections(text)["last_paragraph"] == "The lungs are clear.\n \n No effusion."


def test_there_is_no_last_paragraph_where_there_are_findings_or_no_blank_line():
    assert "last_paragraph" not in names("\n FINDINGS: clear\n \n NOTE: a\n \n b\n")
    assert names("\n NOTE: a\n b\n") == ["preamble", "note"]


def test_a_report_without_headers_has_a_last_paragraph_too():
    assert names("FINAL REPORT\n \n Clear.\n") == ["full report", "last_paragraph"]


def test_an_addendum_stands_above():
    text = " ADDENDUM  seen again\n ______________________________________________\n" + TYPICAL
    assert select_sections(text)["impression"] == "Large left pleural effusion"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("INDICATION: cough\nFINDINGS: clear\nIMPRESSION: normal", ("cough", "clear", "normal")),
        ("Indication: cough. Findings: clear. Impression: normal.", ("cough.", "clear.", "normal.")),
        ("**Indication**\n\ncough\n\n**Findings**\n\nclear\n\n**Conclusion**\n\nnormal", ("cough", "clear", "normal")),
        ("REASON FOR EXAM\ncough\n\nREPORT\nclear\n\nOPINION\nnormal", ("cough", "clear", "normal")),
        ("Clear lungs.", ("", "", "")),
    ],
)
def test_sections_of_any_layout(text, expected):
    parts = sections(text)
    assert (parts["indication"], parts["findings"], parts["impression"]) == expected


def test_sections_of_mimics_layout_are_the_published_ones():
    assert sections(TYPICAL) == select_sections(TYPICAL)


def test_what_follows_an_indication_without_a_header_is_read():
    assert readable_text("Comparison: prior with effusion. The lungs are clear.").strip() == "The lungs are clear."
    assert readable_text("HISTORY:\nfever and cough\n\nThe lungs are clear.").strip() == "The lungs are clear."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n . ", []),
        ("No effusion. Clear lungs.", ["No effusion.", "Clear lungs."]),
        ("no effusion . clear lungs .", ["no effusion .", "clear lungs ."]),
        ("1. No effusion. 2. Stable.", ["No effusion.", "Stable."]),
        ("1.There is an opacity.", ["1.There is an opacity."]),
        ("1) One\n 2) Two", ["One", "Two"]),
        ("- one\n- two", ["one", "two"]),
        ("A 5.5 cm mass vs. a cyst.", ["A 5.5 cm mass vs. a cyst."]),
        ("Discussed with Dr. ___ at 5 p.m. on ___. Clear.", ["Discussed with Dr. ___ at 5 p.m. on ___.", "Clear."]),
        ("XXXX XXXX. XXXX clear.", ["XXXX XXXX.", "XXXX clear."]),
        ("Lungs are clear.No effusion.", ["Lungs are clear.", "No effusion."]),
        ("The heart\n is large.", ["The heart is large."]),
        ("Heart normal\n \n Lungs clear", ["Heart normal", "Lungs clear"]),
        ("No effusion\nMild edema\nHeart normal", ["No effusion", "Mild edema", "Heart normal"]),
        (
            "There is no evidence of a pleural effusion on either side of this patient of\nDr. Smith.",
            ["There is no evidence of a pleural effusion on either side of this patient of Dr. Smith."],
        ),
        ("Right base ? consolidation. ?effusion", ["Right base ? consolidation.", "?effusion"]),
        ("No fracture of T12.No effusion.", ["No fracture of T12.", "No effusion."]),
        ("New effusion? Yes!", ["New effusion?", "Yes!"]),
        ("Nodule measures 3 mm. Stable.", ["Nodule measures 3 mm.", "Stable."]),
        ("Compare T1. 2 nodules.", ["Compare T1.", "2 nodules."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected
