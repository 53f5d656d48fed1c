"""The packaged WordNet: what METEOR gets from it is what nltk's reader gives on WordNet's own files."""

import gzip

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.meteor_score import single_meteor_score

from hf_medvlm.metrics import wordnet
from hf_medvlm.metrics.meteor import meteor
from hf_medvlm.metrics.wordnet.__main__ import compact

# Synsets of a small dictionary in the format of wndb(5WN): part of speech, words. `able(p)` carries a marker.
SYNSETS = {
    "noun": [["foot", "pes"], ["foot", "Foot", "base"], ["lung"], ["heart", "pump"], ["chest_pain", "angina"]],
    "verb": [["foot", "pay"], ["pump", "beat"], ["see", "find"]],
    "adj": [["able(p)", "capable"], ["large", "big(a)"], ["clear"]],
    "adv": [["well", "good"]],
}
EXCEPTIONS = {"noun": ["feet foot"], "verb": ["saw see"], "adj": ["better good well"], "adv": ["best well"]}
WORDS = """foot feet foots lung lungs heart hearts pump pumps pumped pumping beats saw finds able capable large larger
largest big bigger clear clearer well good best better chest_pain angina unknown Foot FEET pes bases ___ 肺""".split()


@pytest.fixture
def dictionary(tmp_path, monkeypatch):
    """A folder of WordNet's own files, inside nltk's data path."""
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    letters = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
    for suffix, synsets in SYNSETS.items():
        licence = "  1 This software and database is provided\n"
        data, index = licence, {}
        for words in synsets:
            offset = len(data.encode())
            listed = " ".join(f"{word} 0" for word in words)
            data += f"{offset:08d} 03 {letters[suffix]} {len(words):02x} {listed} 000 | gloss\n"
            for word in words:
                index.setdefault(word.split("(")[0].lower(), {})[f"{offset:08d}"] = None
        (folder / f"data.{suffix}").write_text(data)
        lines = [
            f"{word} {letters[suffix]} {len(at)} 0 {len(at)} 0 {' '.join(at)}\n" for word, at in sorted(index.items())
        ]
        (folder / f"index.{suffix}").write_text(licence + "".join(lines))
        (folder / f"{suffix}.exc").write_text("\n".join(EXCEPTIONS[suffix]) + "\n")
    (folder / "lexnames").write_text("".join(f"{n:02d}\tfile{n}\t1\n" for n in range(4)))
    (folder / "index.sense").write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    return folder


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_compact_data_gives_nltks_synonyms(dictionary):
    ours = wordnet.WordNet(compact(dictionary))
    theirs = WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)
    for word in WORDS:
        expected = {lemma.name() for synset in theirs.synsets(word) for lemma in synset.lemmas()}
        names = {lemma.name() for synset in ours.synsets(word) for lemma in synset.lemmas()}
        assert names == {name for name in expected if "_" not in name}, word
    assert {lemma.name() for lemma in ours.synsets("feet")[0].lemmas()} == {"foot", "pes", "Foot", "base"}


def test_packaged_data_is_the_whole_of_wordnet_3():
    path = wordnet.files(wordnet.__name__)
    lines = gzip.decompress(path.joinpath(wordnet.DATA).read_bytes()).decode().splitlines()
    assert "Princeton University" in lines[0] and "Princeton University" in path.joinpath("LICENSE.txt").read_text()
    synsets = [line for line in lines if line[:2] in ("n ", "v ", "a ", "r ")]
    lemmas = {(line[0], word.lower()) for line in synsets for word in line.split()[1:]}
    assert len(lemmas) == 155_287  # wnstats(7WN) of WordNet 3.0: unique strings summed over parts of speech


def test_meteor_knows_synonyms_and_irregular_forms():
    plain = single_meteor_score(["feet"], ["foot"], wordnet=wordnet.WordNet([]))
    assert plain == 0 and meteor("feet", "foot") > 0
    # the example in the docstring of `evaluate`'s meteor
    score = meteor(
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
    )
    assert score == pytest.approx(0.6944, abs=5e-5)
