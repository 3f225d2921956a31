"""The commands of the page on transfer: facts are planted, a model is trained on them, exported and asked; all of it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moss_train.data.texts import read_texts
from moss_train.data.tokenizer import MossTokenizer
from tests.launch import python, succeeded
from tests.planted import export, new_model, train

SCRIPT = "scripts/evaluate.py"


def lines(path: Path) -> list[dict[str, Any]]:
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_planted_facts_are_asked_in_both_languages(tmp_path: Path) -> None:
    probes, again, out = tmp_path / "probes", tmp_path / "again", tmp_path / "transfer"
    settings = ("task=make_probes", "seed=1", "facts=27", "repetitions=1", "sentences=1", "glossary=true", "parallel=18")
    succeeded(python(SCRIPT, *settings, f"out={probes}"))
    succeeded(python(SCRIPT, *settings, f"out={again}"))
    for name in ("planted_zh.jsonl", "planted_en.jsonl", "glossary.jsonl", "probes.jsonl"):
        assert (probes / name).read_bytes() == (again / name).read_bytes()

    texts = {name: [text for _, text in read_texts(str(probes / f"planted_{name}.jsonl"))] for name in ("zh", "en")}
    tokenizer = MossTokenizer.train([*texts["zh"], *texts["en"]], 600, reserved_tags=0)
    model = new_model(tokenizer)
    train(model, tokenizer, texts["en"], 300)
    directory = export(model, tokenizer, tmp_path / "export")

    # A corpus can be made of the documents, and loses none of them.
    sources = [f"sources.{name}={{path: {probes}/planted_{name}.jsonl, language: {name}}}" for name in texts]
    succeeded(python("scripts/prepare.py", f"tokenizer={directory}", f"out={tmp_path}/corpus", *sources, "exact_dedup=true", "workers=1"))
    shown = succeeded(python("scripts/prepare.py", "show", f"{tmp_path}/corpus")).stdout
    assert f"{len(texts['zh'])}" in shown

    result = succeeded(python(SCRIPT, "task=transfer", f"model={directory}", f"probes={probes}", f"out={out}"))
    for expected in ("right answers among 4", "25.0", "en > en", "none > zh", "transfer en > zh"):
        assert expected in result.stdout, result.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["chance"] == 0.25
    cells = {(cell["planted"], cell["asked"]): cell for cell in report["cells"]}
    assert len(cells) == 6
    assert cells["en", "en"]["right"] >= 17
    assert cells["en", "en"]["gain_interval"][0] > 0
    items = lines(out / "items.jsonl")
    assert len(items) == 27 * 3 * 2
    assert sum(item["correct"] for item in items if (item["planted"], item["asked"]) == ("en", "en")) == cells["en", "en"]["right"]
    record = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    assert (record["kind"], [parent["role"] for parent in record["parents"]]) == ("evaluation", ["model", "data"])
    assert record["parents"][0]["id"] == json.loads((directory / "lineage.json").read_text(encoding="utf-8"))["id"]
    succeeded(python("scripts/lineage.py", "verify", str(out)))

    # The file alone will do, in another batch, and it is the same.
    other = tmp_path / "other"
    succeeded(
        python(
            SCRIPT,
            "task=transfer",
            f"model={directory}",
            f"probes={probes}/probes.jsonl",
            f"out={other}",
            "batch_size=3",
            "unverified=true",
        )
    )
    assert [item["picked"] for item in lines(other / "items.jsonl")] == [item["picked"] for item in items]

    # What is wrong is told with the documented codes, and nothing is left behind.
    before = sorted(path.name for path in tmp_path.iterdir())
    transfer = {"model": str(directory), "probes": str(probes), "out": str(tmp_path / "new")}
    (tmp_path / "bad.jsonl").write_text(
        (probes / "probes.jsonl").read_text(encoding="utf-8").replace('"planted": "zh"', '"planted": "zz"', 1)
    )
    for changed, code, told in (
        ({"out": str(out)}, 2, "exists"),
        ({"choices": "9"}, 2, "choices is 9; expected 2 to 8"),
        ({"model": str(tmp_path / "no")}, 4, "no such directory"),
        ({"model": str(probes)}, 4, "no config.json"),
        ({"probes": str(tmp_path / "no")}, 3, "there is no such file or directory"),
        ({"probes": str(tmp_path / "bad.jsonl")}, 3, "bad.jsonl:1: bad_probe: planted is 'zz'"),
    ):
        arguments = [f"{key}={value}" for key, value in (transfer | changed).items()]
        failed = python(SCRIPT, "task=transfer", *arguments)
        assert (failed.returncode, told in failed.stderr, "Traceback" in failed.stderr) == (code, True, False), failed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "bad.jsonl"])
    (probes / "probes.jsonl").write_text((tmp_path / "bad.jsonl").read_text(encoding="utf-8"))
    failed = python(SCRIPT, "task=transfer", *(f"{key}={value}" for key, value in transfer.items()))
    assert failed.returncode == 4
    assert "probes.jsonl is changed" in failed.stderr
