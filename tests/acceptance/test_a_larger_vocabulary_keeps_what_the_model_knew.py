"""A CodeGen model with a larger vocabulary computes, under the map of ids, what it did; stock classes open it; it has its record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from moss_train.artifacts import lineage, lineage_tool
from moss_train.artifacts.config import ExtendVocabConfig, Rows
from moss_train.artifacts.extend_vocab import main
from moss_train.config import ExportDtype
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, UsageError
from moss_train.model.loading import load_model
from tests.codegen_base import BLANKS, write_model, write_vocabulary
from tests.forked import forked

ENGLISH = ["def main():\n    return  1\n", "the weather is good today, the model is good", "for x in range(10):\n\t\tprint(x)\n"] * 3
CHINESE = ["今天天气很好，我们去公园散步。", "人工智能的发展很快，人工智能模型很好。", "我们今天学习人工智能。"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "zh.txt"
    path.write_text("\n".join(CHINESE), encoding="utf-8")
    return path


def base(folder: Path, **shape: int) -> Path:
    used = write_vocabulary(folder, ENGLISH, 60)
    write_model(folder, used, **shape)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(("hidden_size", "heads"), [(256, 4), (320, 4), (1024, 4)], ids=["head size 64", "head size 80", "head size 256"])
def test_logits_of_old_tokens_stay_under_the_map_of_ids(tmp_path: Path, text: Path, hidden_size: int, heads: int) -> None:
    source = base(tmp_path / "codegen", hidden_size=hidden_size, heads=heads)
    out = tmp_path / "extended"
    main(ExtendVocabConfig(model=str(source), out=str(out), text=str(text), new_tokens=16))
    old, new = MossTokenizer.load(source), MossTokenizer.load(out)
    spellings = [old.token_bytes(token) for token in range(old.endoftext)]
    assert [new.token_bytes(token) for token in range(old.endoftext)] == spellings
    moved = {**{token: token for token in range(old.endoftext)}, old.endoftext: new.endoftext}
    moved |= {old.encode(run)[0]: new.encode(run)[0] for run in BLANKS}
    ids = torch.randperm(len(moved), generator=torch.Generator().manual_seed(1))[:120]
    old_rows, new_rows = torch.tensor(list(moved)), torch.tensor(list(moved.values()))
    with torch.no_grad():
        before = load_model(source, torch.float32).eval()(old_rows[ids][None]).logits[0]
        after = load_model(out, torch.float32).eval()(new_rows[ids][None]).logits[0]
    worst = (after[:, new_rows] - before[:, old_rows]).abs().max()
    assert float(before.abs().max()) > 0.01
    assert float(worst) <= 1e-6


def test_the_directory_is_ready_to_start_from(tmp_path: Path, text: Path) -> None:
    """Every strategy, bf16, several files, the stock class, the record with its parent, data and what was measured."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = base(tmp_path / "codegen")
    out = tmp_path / "extended"
    english = tmp_path / "en.txt"
    english.write_text(ENGLISH[1], encoding="utf-8")
    config = ExtendVocabConfig(
        model=str(source), out=str(out), text=[str(text)], new_tokens=16, licence="CC0-1.0", dtype=ExportDtype.bf16, max_shard_gb=2e-5,
        heldout={"zh": str(text), "en": str(english)}, compare=[Rows.random, Rows.weighted], reserved_tags=20, vocab_size=512,
    )  # fmt: skip
    main(config)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == model.lm_head.out_features == 512
    assert model.dtype == torch.bfloat16
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert tokenizer(CHINESE[0], add_special_tokens=False)["input_ids"] == MossTokenizer.load(out).encode(CHINESE[0])
    record = lineage.load(out)
    assert record is not None
    assert (record.lineage.kind, record.lineage.stage) == ("model", "extend_vocab")
    assert [(parent.role, parent.name) for parent in record.lineage.parents] == [("init", "codegen")]
    assert [(found.name, found.records, found.role, found.licence) for found in record.lineage.data] == [
        ("zh.txt", 1, "vocabulary", "CC0-1.0")
    ]
    report = json.loads((out / "extension.json").read_text(encoding="utf-8"))
    assert set(report["heldout"]["zh"]["bits_per_byte"]) == {"before", "random", "weighted", "mean_of_pieces"}
    assert report["heldout"]["en"]["changed"] == 0
    assert report["heldout"]["zh"]["tokens_after"] < report["heldout"]["zh"]["tokens_before"]


def test_what_was_extended_is_extended_again_and_both_verify(tmp_path: Path, text: Path) -> None:
    """The record of the base is carried on, but not what no longer holds: its tokenizer, rows and parameters."""
    base(tmp_path / "codegen")
    for source, out in (("codegen", "once"), ("once", "twice")):
        main(ExtendVocabConfig(model=str(tmp_path / source), out=str(tmp_path / out), text=str(text), new_tokens=8))
    assert lineage_tool.main(["verify", str(tmp_path / "twice")]) == 0
    sizes = [MossTokenizer.load(tmp_path / name).size for name in ("once", "twice")]
    assert sizes[1] == sizes[0] + 8
    record = lineage.load(tmp_path / "twice")
    assert record is not None
    assert record.lineage.details["tokenizer_fingerprint"] == MossTokenizer.load(tmp_path / "twice").fingerprint


def test_a_warm_up_changes_new_rows_and_nothing_else(tmp_path: Path, text: Path) -> None:
    source = base(tmp_path / "codegen")
    plain, warm = tmp_path / "plain", tmp_path / "warm"
    settings = ExtendVocabConfig(model=str(source), out=str(plain), text=str(text), new_tokens=16)
    main(settings)
    settings.out, settings.warmup.steps, settings.warmup.seq_len, settings.warmup.lr = str(warm), 12, 32, 1e-2
    main(settings)
    before, after = (dict(load_model(path, torch.float32).named_parameters()) for path in (plain, warm))
    new = MossTokenizer.load(warm)
    old_rows = torch.ones(new.vocab_size, dtype=torch.bool)
    old_rows[new.endoftext - 16 : new.endoftext] = False
    old_rows[new.eoh : new.size] = False
    for name, tensor in before.items():
        if tensor.shape[0] == new.vocab_size:
            assert torch.equal(tensor[old_rows], after[name][old_rows]), name
            assert not torch.equal(tensor[~old_rows], after[name][~old_rows]), name
        else:
            assert torch.equal(tensor, after[name]), name
    report = json.loads((warm / "extension.json").read_text(encoding="utf-8"))["warmup"]
    assert report["loss_last"] < report["loss_first"]


def test_the_chosen_strategy_is_kept_wherever_it_stands_among_those_compared(tmp_path: Path, text: Path) -> None:
    source = base(tmp_path / "codegen")
    plain, compared = tmp_path / "plain", tmp_path / "compared"
    main(ExtendVocabConfig(model=str(source), out=str(plain), text=str(text), new_tokens=16))
    settings = ExtendVocabConfig(model=str(source), out=str(compared), text=str(text), new_tokens=16, heldout={"zh": str(text)})
    settings.compare, settings.warmup.steps, settings.warmup.lr = [Rows.mean_of_pieces, Rows.weighted], 1, 1e-12
    settings.warmup.seq_len = 32
    main(settings)
    kept, found = (dict(load_model(path, torch.float32).named_parameters()) for path in (plain, compared))
    for name, tensor in kept.items():
        assert float((tensor - found[name]).abs().max().detach()) < 1e-9, name


def test_a_model_without_spare_rows_is_extended(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "tight"
    used = write_vocabulary(folder, ENGLISH, 60)
    write_model(folder, used, rows=used)
    main(ExtendVocabConfig(model=str(folder), out=str(tmp_path / "out"), text=str(text), new_tokens=8))
    report = json.loads((tmp_path / "out" / "extension.json").read_text(encoding="utf-8"))
    assert report["rows_before"] == used
    assert load_model(tmp_path / "out", torch.float32).config.vocab_size == report["rows_after"] >= used + 8 + 5 + 16


def test_a_tokenizer_alone_is_extended_too(tmp_path: Path, text: Path) -> None:
    write_vocabulary(tmp_path / "vocabulary", ENGLISH, 60)
    main(ExtendVocabConfig(model=str(tmp_path / "vocabulary"), out=str(tmp_path / "out"), text=str(text), new_tokens=8))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "extension.json", "lineage.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_bad_input_ends_with_its_exit_code_and_writes_nothing(tmp_path: Path, text: Path) -> None:
    source = base(tmp_path / "codegen")
    empty, english, records = tmp_path / "empty.txt", tmp_path / "en.txt", tmp_path / "rows.jsonl"
    empty.write_text("", encoding="utf-8")
    english.write_text("no Chinese here\n", encoding="utf-8")
    records.write_text('{"content": "中文"}\n', encoding="utf-8")
    out = tmp_path / "out"
    for values, error, said in [
        ({"text": f"{tmp_path}/none.txt"}, DataError, "no such file or directory"),
        ({"text": str(empty)}, DataError, "not one piece to learn from"),
        ({"text": str(english)}, DataError, "Chinese, Japanese or Korean text"),
        ({"text": str(records)}, DataError, "expected a field 'text' that holds text, found 'content'"),
        ({"text": str(text), "vocab_size": 300, "new_tokens": 16}, UsageError, "vocab_size=300 has no room"),
        ({"text": str(text), "out": str(source)}, UsageError, "exists; a finished artefact is never changed"),
        ({"text": str(text), "model": f"{tmp_path}/nothing"}, DataError, "no tokenizer found"),
    ]:
        with pytest.raises(error, match=re.escape(said)):
            main(ExtendVocabConfig(**{"model": str(source), "out": str(out), **values}))
        assert not list(tmp_path.glob("out*"))
    for overrides, code, said in [
        (("new_tokens=0", "memory_gib=0.1"), 2, "2 problems"),
        ((f"text={empty}",), 3, "not one piece to learn from"),
    ]:
        done = forked(1, "scripts/extend_vocab.py", f"model={source}", f"out={out}", f"text={text}", *overrides)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert not list(tmp_path.glob("out*"))
