"""Preparing in this process: what is kept, dropped, counted and refused."""

from __future__ import annotations

import errno
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.corpus import Corpus, open_corpus
from moss_train.data.corpus_check import check_corpus
from moss_train.data.corpus_tool import main as tool
from moss_train.data.prepare.config import DecontaminationConfig, Encoder, MinhashConfig, OnBad, PrepareConfig, SlurmConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.prepare.plan import WORK
from moss_train.data.prepare.words import WORDS
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, DiskFullError, UsageError
from tests.corpora import digests, documents, write_jsonl, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


def make(tokenizer: Path, out: Path, texts: list[str], **settings: Any) -> Corpus:
    """A corpus of one source."""
    path = write_jsonl(out.with_name(f"{out.name}.jsonl"), texts)
    settings = {"workers": 1, "shard_mb": 0.01, **settings}
    corpus = prepare(PrepareConfig(str(tokenizer), str(out), {"zh": SourceConfig(str(path), "zh", "CC0-1.0")}, **settings))
    assert corpus is not None
    return corpus


def kept(corpus: Corpus) -> list[str]:
    """The texts of all documents."""
    tokenizer = MossTokenizer.load(corpus.directory / "tokenizer")
    return [tokenizer.decode(shard.document(n)[:-1].tolist()) for shard in corpus.shards() for n in range(shard.documents)]


def counts(corpus: Corpus) -> dict[str, int]:
    """Documents by what became of them."""
    found = corpus.sources["zh"].counts
    return {"read": found["read"]["documents"], "kept": found["kept"]["documents"]} | {
        reason: dropped["documents"] for reason, dropped in found["dropped"].items()
    }


def test_documents_come_out_as_they_went_in(tokenizer: Path, tmp_path: Path) -> None:
    texts = [*documents("zh", 200), "<|endoftext|><eom> is text", "   "]
    corpus = make(tokenizer, tmp_path / "corpus", texts)
    assert kept(corpus) == texts
    assert len(corpus.sources["zh"].shards) > 3
    assert list(check_corpus(corpus)) == []
    assert corpus.bytes == sum(len(text.encode()) for text in texts)
    assert counts(corpus) == {"read": 202, "kept": 202}
    assert not (corpus.directory / ".prepare").exists()


def test_workers_and_encoder_do_not_matter(tokenizer: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents("en", 100))
    made = []
    for number, (workers, encoder) in enumerate([(1, Encoder.auto), (2, Encoder.auto), (1, Encoder.tokenizers)]):
        out = tmp_path / str(number)
        config = PrepareConfig(str(tokenizer), str(out), {"en": SourceConfig(str(path), "en")}, 0.005, encoder, workers=workers)
        prepare(config)
        made.append(digests(out))
    assert made[0] == made[1] == made[2]


def test_what_is_dropped_is_counted_by_reason(tokenizer: Path, tmp_path: Path) -> None:
    texts = [*documents("zh", 20), "", "短", "很长" * 500, "", "一样的一样的", "一样的一样的"]
    corpus = make(tokenizer, tmp_path / "corpus", texts, min_chars=3, max_chars=800, exact_dedup=True)
    assert counts(corpus) == {"read": 26, "kept": 21, "empty": 2, "repeated": 1, "too long": 1, "too short": 1}
    dropped = corpus.sources["zh"].counts["dropped"]["too long"]
    assert dropped["bytes"] == 3000
    assert dropped["tokens"] == len(MossTokenizer.load(tokenizer).encode(texts[22]))
    read = corpus.sources["zh"].counts["read"]
    assert read["bytes"] == sum(len(text.encode()) for text in texts)


def test_the_first_of_equal_documents_stays(tokenizer: Path, tmp_path: Path) -> None:
    texts = documents("zh", 120)
    repeated = [texts[7], *texts, texts[3], texts[3], texts[100]]
    corpus = make(tokenizer, tmp_path / "corpus", repeated, exact_dedup=True, shard_mb=0.003)
    assert len(corpus.sources["zh"].shards) > 5
    assert kept(corpus) == [texts[7], *texts[:7], *texts[8:]]
    assert counts(corpus)["repeated"] == 4


def test_near_repeats_are_dropped(tokenizer: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    # A marker first; numbers are all the same to MinHash.
    texts = [" ".join([str(n), *("".join(generator.choices("abcdefgh", k=6)) for _ in range(60))]) for n in range(20)]
    near = [f"{text} more" for text in texts[:5]]
    corpus = make(tokenizer, tmp_path / "corpus", [*texts, *near, texts[9]], minhash=MinhashConfig(True), exact_dedup=True, shard_mb=0.002)
    assert counts(corpus) == {"read": 26, "kept": 20, "repeated": 1, "nearly repeated": 5}
    assert Counter(text.split()[0] for text in kept(corpus)) == Counter(str(n) for n in range(20))


def test_documents_with_text_of_evaluation_sets_are_dropped(tokenizer: Path, tmp_path: Path) -> None:
    question = "How many apples does the farmer have after selling half of the forty two he picked?"
    evaluation = tmp_path / "test.jsonl"
    evaluation.write_text(json.dumps({"q": {"question": question}, "n": 3}) + "\n")
    texts = [*documents("en", 10), f"I found this: {question.upper()} Well.", "中文" + question[:20]]
    corpus = make(tokenizer, tmp_path / "corpus", texts, decontaminate=DecontaminationConfig([str(evaluation)], 8))
    assert counts(corpus) == {"read": 12, "kept": 11, "decontamination: contaminated": 1}
    with pytest.raises(DataError, match=r"no text of .* has 80 words"):
        make(tokenizer, tmp_path / "other", texts, decontaminate=DecontaminationConfig([str(evaluation)], 80))


def test_evaluation_sets_belong_to_what_decides_a_corpus(tokenizer: Path, tmp_path: Path) -> None:
    """Killed while their hashes were written, changed after a corpus was made, and recorded."""
    evaluation = tmp_path / "test.txt"
    evaluation.write_text("the farmer sold half of the forty two apples that he had picked", encoding="utf-8")
    texts = [*documents("en", 10), "I know that the farmer sold half of the forty two apples that he had picked."]
    out, source = tmp_path / "corpus", SourceConfig(str(write_jsonl(tmp_path / "texts.jsonl", texts)), "zh")
    config = PrepareConfig(str(tokenizer), str(out), {"zh": source}, workers=1, decontaminate=DecontaminationConfig([str(evaluation)], 8))
    (out / WORK / "contamination").mkdir(parents=True)
    corpus = prepare(config)
    assert corpus is not None
    assert counts(corpus) == {"read": 11, "kept": 10, "decontamination: contaminated": 1}
    record = lineage.load(out)
    assert record is not None
    assert [(found.name, found.role) for found in record.lineage.data] == [("zh", "train"), ("test.txt", "decontamination")]
    assert prepare(config) is not None
    evaluation.write_text("another text, which is as long as it takes to have eight words", encoding="utf-8")
    with pytest.raises(DataError, match="hold other files than when it was made"):
        prepare(config)


def test_jobs_that_may_still_run_are_left_alone(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    (out / WORK / "slurm").mkdir(parents=True)
    (out / WORK / "slurm" / "submitted").touch()
    with pytest.raises(UsageError, match=r"slurm\.again=true goes on"):
        make(tokenizer, out, documents("zh", 5))
    assert make(tokenizer, out, documents("zh", 5), slurm=SlurmConfig(again=True)).documents == 5


def test_filters_by_name_and_their_options(tokenizer: Path, tmp_path: Path) -> None:
    prose = "The quick brown fox jumps over the lazy dog, and then it runs back to the house with all of its friends. "
    texts = [prose * 1 + f"It was day {n} of that summer, and they have been happy ever since. " for n in range(10)]
    texts += ["one two", "same line of words\n" * 40]
    options = {"gopher_quality": {"min_doc_words": 20}}
    corpus = make(tokenizer, tmp_path / "corpus", texts, filters=["gopher_repetition", "gopher_quality"], filter_options=options)
    assert counts(corpus)["kept"] == 10
    assert sum(number for reason, number in counts(corpus).items() if reason.startswith("gopher_")) == 2
    with pytest.raises(DataError, match=r"filter_options\.gopher_quality: .*min_words"):
        make(tokenizer, tmp_path / "other", texts, filters=["gopher_quality"], filter_options={"gopher_quality": {"min_words": 1}})


def test_bad_records_end_it_or_are_listed(tokenizer: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents("zh", 50))
    with path.open("a") as file:
        file.write('{"text": 3}\nnot json\n')
    sources = {"zh": SourceConfig(str(path), "zh")}
    out = tmp_path / "corpus"
    with pytest.raises(DataError, match=r"(?s)2 bad of 52 records of zh.*a.jsonl:51: text_not_string.*:52: bad_json.*on_bad=skip"):
        prepare(PrepareConfig(str(tokenizer), str(out), sources, workers=1))
    with pytest.raises(DataError, match=r"2 bad of 52 records, more than the 1.0% that may be skipped"):
        prepare(PrepareConfig(str(tokenizer), str(tmp_path / "skip"), sources, workers=1, on_bad=OnBad.skip))
    corpus = prepare(PrepareConfig(str(tokenizer), str(tmp_path / "more"), sources, workers=1, on_bad=OnBad.skip, max_bad_share=0.1))
    assert corpus is not None
    assert corpus.sources["zh"].counts["bad"] == {"bad_json": 1, "text_not_string": 1}
    rejects = [json.loads(line) for line in (corpus.directory / "rejects.jsonl").read_text().splitlines()]
    assert [(one["source"], one["origin"], one["code"]) for one in rejects] == [
        ("zh", f"{path}:51", "text_not_string"),
        ("zh", f"{path}:52", "bad_json"),
    ]


def test_a_source_of_which_nothing_is_left_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zh: no document is left \(empty 1, too short 1\)"):
        make(tokenizer, tmp_path / "corpus", ["", "x"], min_chars=5)


def test_other_settings_are_refused_by_name(tokenizer: Path, tmp_path: Path) -> None:
    out, texts = tmp_path / "corpus", documents("zh", 30)
    make(tokenizer, out, texts)
    before = digests(out)
    with pytest.raises(
        UsageError, match=r"(?s)was made with other settings:\n  - min_chars: was 1, now 2\n  - exact_dedup: was False, now True"
    ):
        prepare(PrepareConfig(str(tokenizer), str(out), _sources(out), 0.01, min_chars=2, exact_dedup=True))
    other = tmp_path / "other"
    write_tokenizer(other, 500)
    with pytest.raises(UsageError, match=r"tokenizer \(fingerprint\): was"):
        prepare(PrepareConfig(str(other), str(out), _sources(out), 0.01))
    assert digests(out) == before


def _sources(out: Path) -> dict[str, SourceConfig]:
    return {"zh": SourceConfig(str(out.with_name(f"{out.name}.jsonl")), "zh", "CC0-1.0")}


def test_a_finished_corpus_is_left_alone(tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, texts = tmp_path / "corpus", documents("zh", 30)
    make(tokenizer, out, texts)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    caplog.set_level("INFO", logger="moss_train")
    config = PrepareConfig(str(tokenizer), str(out), _sources(out), 0.01)
    prepare(config)
    assert "is complete already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    # Killed while it tidied up.
    (out / ".prepare" / "stages").mkdir(parents=True)
    (out / ".trash-x").mkdir()
    prepare(config)
    assert set(out.rglob("*")) == set(before)
    write_jsonl(out.with_name("corpus.jsonl"), [*texts, "more"])
    with pytest.raises(DataError, match="is complete, but its sources hold other files than when it was made"):
        prepare(config)
    out.with_name("corpus.jsonl").unlink()
    prepare(config)


def test_a_directory_of_something_else_is_left_alone(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists and is not a corpus in the making"):
        make(tokenizer, out, ["x"])


def test_the_sample_is_compared(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moss_train.data.fast_tokens import FastEncoder

    compared = []
    monkeypatch.setattr(FastEncoder, "check_same", lambda self, text, ids, document: compared.append((text.decode(), document)))
    texts = documents("zh", 20)
    longest = max(range(20), key=lambda number: len(texts[number].encode()))
    make(tokenizer, tmp_path / "corpus", texts, samples=2, shard_mb=1)
    assert compared == [(texts[n], f"zh/shard-00000, document {n}") for n in (0, 1, 3, longest)]


def test_a_code_tree_with_its_kinds(tokenizer: Path, tmp_path: Path) -> None:
    for name, text in {"a.py": "x = 1\n", "b/c.js": "let x;\n", "b/d.py": "", "e.png": "x", ".git/f.py": "x"}.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    corpus = prepare(
        PrepareConfig(str(tokenizer), str(tmp_path / "out"), {"code": SourceConfig(str(tmp_path / "tree"), "code")}, workers=1)
    )
    assert corpus is not None
    found = corpus.sources["code"].counts
    assert (found["kinds"], found["files_left_out"]) == ({"javascript": 1, "python": 2}, {"png": 1})
    assert kept(corpus) == ["x = 1\n", "let x;\n"]


def test_without_datatrove_the_extra_is_named(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    with pytest.raises(UsageError, match=r'needs datatrove .*pip install "moss-train\[prepare\]"'):
        make(tokenizer, tmp_path / "corpus", ["x"])


def test_the_tools(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    corpus = make(tokenizer, out, ["北京市有多少区？", "<eom>\x1b[0m", "third"])
    first = corpus.sources["zh"].shards[0]
    assert tool(["show", str(out)]) == 0
    assert "kept" in capsys.readouterr().out
    assert tool(["check", str(out)]) == 0
    assert capsys.readouterr().out.startswith("OK: 1 shard, 3 documents")
    assert tool(["inspect", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    ends = first.ends.tolist()
    assert lines[1:] == [
        "北京市有多少区？", f"⟦document 0 ends at token {ends[0]}⟧", "<eom>␛[0m", f"⟦document 1 ends at token {ends[1]}⟧", "third",
        f"⟦document 2 ends at token {ends[2]}⟧",
    ]  # fmt: skip
    assert tool(["inspect", str(out), "--source", "zh", "--shard", "0", "--at", str(ends[1]), "--length", "1"]) == 0
    assert "from document 2 of 3" in capsys.readouterr().out
    for arguments, code in ((["--at", "9999"], 2), (["--shard", "7"], 2), (["--source", "en"], 3)):
        assert tool(["inspect", str(out), *arguments]) == code
    assert open_corpus(out).source("zh").licence == "CC0-1.0"


def test_lineage_names_the_tokenizer_and_the_licences(tokenizer: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    MossTokenizer.load(tokenizer).save(base)
    made = lineage_kinds.tokenizer("test", [lineage.Source("words", "0" * 64, 3, licence="MIT")], 10, 64, "f")
    identity = lineage.write(base, made)
    corpus = make(base, tmp_path / "corpus", documents("zh", 10))
    record = lineage.load(corpus.directory)
    assert record is not None
    assert [(parent.role, parent.id, parent.path) for parent in record.lineage.parents] == [("tokenizer", identity, "../base")]
    assert record.lineage.licences == {"CC0-1.0": ["zh"], "MIT": ["words"]}
    assert [(source.name, source.records, source.sha256) for source in record.lineage.data] == [("zh", 10, corpus.source("zh").fingerprint)]
    assert record.lineage.details["tokens"] == corpus.tokens
    assert lineage.hash_files(corpus.directory) == {name: vars(entry) for name, entry in record.files.items()}


def test_words_of_any_language() -> None:
    assert WORDS.word_tokenize("I don't know 北京 x_1, カナ!") == ["I", "don't", "know", "北", "京", "x_1", ",", "カ", "ナ", "!"]
    assert WORDS.sent_tokenize("One. Two!\n三。四") == ["One.", "Two!", "三。", "四"]
    text = "One. Two!\n三。四"
    assert [text[start:end] for start, end in WORDS.span_tokenize(text)] == WORDS.sent_tokenize(text)


def test_what_the_disk_has_no_room_for_is_told(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "corpus"
    monkeypatch.setattr(files, "write_piece", full)
    with pytest.raises(DiskFullError, match="no space is left"):
        make(tokenizer, out, documents("zh", 10))
    monkeypatch.undo()
    assert kept(make(tokenizer, out, documents("zh", 10))) == documents("zh", 10)
