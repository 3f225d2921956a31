"""What a run makes of its data settings: mixtures, bad records, long dialogues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked import forked
from tests.launch import losses, succeeded
from tests.small_runs import BUNDLED, arguments, checkpoint, supervised


def split(folder: Path) -> tuple[Path, Path]:
    """Two files of bundled dialogues, one as messages."""
    records = [json.loads(line) for line in BUNDLED.read_text(encoding="utf-8").splitlines()[:60]]
    first, second = folder / "a b.jsonl", folder / "中文.jsonl"
    first.write_text("".join(json.dumps(record) + "\n" for record in records[:40]), encoding="utf-8")
    second.write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"It is {n + 1}."}]}
            )
            + "\n"
            for n in range(20)
        ),
        encoding="utf-8",
    )
    return first, second


def test_a_mixture_of_files_of_two_formats(tmp_path: Path) -> None:
    """Under one and two ranks the same samples; the lineage says what was mixed."""
    first, second = split(tmp_path)
    mixed = f"data.train={{{first}: 0.75, {second}: 0.25}}"
    runs = {}
    for ranks in (1, 2):
        line = arguments(tmp_path / str(ranks), mixed, "data.default_meta=none", "train.steps=6", "export.enabled=true")
        result = succeeded(forked(ranks, "scripts/sft.py", *line))
        runs[ranks] = supervised(tmp_path / str(ranks))
        assert "a b.jsonl: " in result.stdout + result.stderr
        assert "weight 0.25" in result.stdout + result.stderr
    assert runs[1] == runs[2]
    record = json.loads((tmp_path / "2" / "export" / "lineage.json").read_text(encoding="utf-8"))
    assert record["details"]["mixture"] == {"a b.jsonl": 0.75, "中文.jsonl": 0.25}
    assert [source["name"] for source in record["data"]] == ["a b.jsonl", "中文.jsonl"]
    assert [source["records"] for source in record["data"]] == [40, 20]


@pytest.mark.slow
def test_a_mixture_is_gone_on_with_at_the_next_sample(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    mixed = f"data.train={{{first}: 1, {second}: 2}}"
    succeeded(forked(2, "scripts/sft.py", *arguments(tmp_path / "whole", mixed, "data.default_meta=none", "train.steps=6")))
    assert (
        forked(
            2, "scripts/sft.py", *arguments(tmp_path / "cut", mixed, "data.default_meta=none", "train.steps=6", "run.stop_after=3")
        ).returncode
        == 75
    )
    succeeded(forked(2, "scripts/sft.py", *arguments(tmp_path / "cut", mixed, "data.default_meta=none", "train.steps=6")))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    other = f"data.train={{{first}: 1, {second}: 3}}"
    result = forked(2, "scripts/sft.py", *arguments(tmp_path / "cut", other, "data.default_meta=none", "train.steps=6"))
    assert result.returncode == 5, "another mixture is other data"


def test_after_a_change_of_the_mixture_each_source_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    common = ("data.default_meta=none", "train.steps=6", "run.allow_changes=[data]")
    before, after = (f"data.train={{{first}: {share}, {second}: 1}}" for share in (1, 3))
    assert forked(2, "scripts/sft.py", *arguments(tmp_path / "run", before, *common, "run.stop_after=3")).returncode == 75
    succeeded(forked(2, "scripts/sft.py", *arguments(tmp_path / "run", after, *common)))
    states = [json.loads((checkpoint(tmp_path / "run", step) / "state.json").read_text(encoding="utf-8")) for step in (3, 6)]
    (old, new), rows = [state["position"] for state in states], 12
    assert sum(old["taken"].values()) == 3 * rows
    assert new["base"] == 3 * rows
    assert new["starts"] == old["taken"]
    more = [new["taken"][name] - old["taken"][name] for name in new["taken"]]
    assert sum(more) == 3 * rows
    assert sorted(more) == [9, 27], "the shares are those of the new mixture"


@pytest.mark.parametrize("policy", ["fail", "skip", "skip_too_many"])
def test_bad_records(tmp_path: Path, policy: str) -> None:
    """They end the run before a model is built, or are left out and written down; the second start says the same without reading."""
    data = tmp_path / "data.jsonl"
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()[:40]
    lines[7], lines[20] = '{"chat": {"turn_1": {"Human": "<|Human|>: cut', '{"conversation_id": 1}'
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    more = {"fail": [], "skip": ["data.on_bad=skip", "data.max_bad_share=0.06"], "skip_too_many": ["data.on_bad=skip"]}[policy]
    for start in range(2):
        run_dir = tmp_path / f"run-{start}"
        result = forked(2, "scripts/sft.py", *arguments(run_dir, f"data.train={data}", "train.steps=1", *more))
        output = result.stdout + result.stderr
        assert "Traceback" not in output
        assert f"{data}:8: bad_json" in output
        assert f"{data}:21: " in output
        assert "totals:" in output
        if policy == "skip":
            assert result.returncode == 0
            rejects = [json.loads(line) for line in (run_dir / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
            assert [reject["origin"] for reject in rejects] == [f"{data}:8", f"{data}:21"]
            assert "rejects.jsonl" in output
        else:
            assert result.returncode == 3
            assert "parameters" not in output, "no model is built"
            assert ("max_bad_share" in output) == (policy == "skip_too_many")


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_dialogues_that_are_too_long(tmp_path: Path, policy: str) -> None:
    line = arguments(tmp_path / "run", f"data.on_long={policy}", "data.seq_len=200", "train.steps=1")
    result = forked(2, "scripts/sft.py", *line)
    output = result.stdout + result.stderr
    if policy == "drop":
        assert result.returncode == 0
        assert "dialogues too long" in output
        assert "of the tokens with loss" in output
    else:
        assert result.returncode == 3
        assert "too_long: " in output
        assert "more than the 200 of data.seq_len" in output
