"""The command line of scripts/prepare.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from moss_train.cli import quote_texts
from moss_train.data.corpus import open_corpus
from moss_train.data.prepare.config import PrepareConfig
from tests.corpora import documents, write_jsonl, write_tokenizer
from tests.launch import python, succeeded


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sources.zh={path: zh/*.jsonl.zst, language: zh}", "++sources={zh: {path: 'zh/*.jsonl.zst', language: 'zh'}}"),
        ("sources.zh={path: [a b, 'c'], extensions: [py]}", "++sources={zh: {path: ['a b', 'c'], extensions: ['py']}}"),
        ("+sources.zh.text=内容", "++sources={zh: {text: '内容'}}"),
        ("sources.zh={path: C:/x, licence: null}", "++sources={zh: {path: 'C:/x', licence: null}}"),
        ("tokenizer=a b", "tokenizer='a b'"),
        ("shard_mb=3", "shard_mb=3"),
    ],
)
def test_sources_need_no_quotes(argument: str, expected: str) -> None:
    assert quote_texts([argument], PrepareConfig) == [expected]


def test_every_problem_is_told_at_once() -> None:
    wrong = ["sources.zh={path: x}", "filters=[gopher]", "shard_mb=0", "executor=slurm", "shard_mib=3"]
    result = python("scripts/prepare.py", "tokenizer=t", *wrong)
    assert result.returncode == 2
    for said in (
        "out must be given",
        "sources.zh.language must be given",
        "there is no filter 'gopher'; expected some of gopher_quality",
        "shard_mb is 0.0; expected",
        "slurm.partition must be given with executor=slurm",
        "shard_mib: there is no such key; did you mean shard_mb?",
    ):
        assert said in result.stderr
    unknown = python("scripts/prepare.py", "tokenizer=t", "out=o", "sources.zh={path: x, langage: zh}")
    assert unknown.returncode == 2
    assert "langage" in unknown.stderr


def test_a_preset_of_ones_own_and_a_command_line_over_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "中文 data.jsonl", documents("zh", 20), "内容")
    (tmp_path / "presets" / "config").mkdir(parents=True)
    preset = f"""# @package _global_
tokenizer: {tmp_path}/tokenizer
sources:
  zh: {{path: "{tmp_path}/*.jsonl", language: zh, licence: MIT, text: text}}
shard_mb: 1
"""
    (tmp_path / "presets" / "config" / "mine.yaml").write_text(preset)
    arguments = ["--config-dir", str(tmp_path / "presets"), "+config=mine", f"out={tmp_path / 'out'}", "sources.zh.text=内容"]
    said = succeeded(python("scripts/prepare.py", *arguments))
    assert "20" in said.stdout
    assert open_corpus(tmp_path / "out").source("zh").licence == "MIT"
    checked = succeeded(python("scripts/prepare.py", "check", str(tmp_path / "out")))
    assert checked.stdout.startswith("OK: 1 shard, 20 documents")
    again = succeeded(python("scripts/prepare.py", *arguments))
    assert "is complete already" in again.stderr


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "zh.jsonl", documents("zh", 40))
    code = (
        "import os, sys; from moss_train.data.prepare import steps; from moss_train.cli import run\n"
        "steps.WriteShard.run = lambda *_: os.kill(os.getpid(), 9); sys.argv = ['prepare', *sys.argv[1:]]; run('prepare')"
    )
    script = tmp_path / "killed.py"
    script.write_text(code)
    source = f"sources.zh={{path: {tmp_path / 'zh.jsonl'}, language: zh}}"
    result = python(str(script), f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'out'}", source, "shard_mb=0.002", "workers=2")
    assert result.returncode == 8
    assert "a process of the preparation was killed" in result.stderr
