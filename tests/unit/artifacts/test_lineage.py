"""The record: content-addressed, typed, without secrets, with inherited licences, and in the words of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.lineage import Lineage, Parent, Source
from moss_train.artifacts.lineage_mapping import huggingface, in_toto, wandb_artifact
from moss_train.data.paths import find_files
from moss_train.errors import CheckpointError
from tests.families import Family


def artefact(folder: Path, made: Lineage | None = None) -> Path:
    """A directory with one file and a record."""
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    lineage.write(folder, made or Lineage("export", "sft"))
    return folder


def record_of(folder: Path) -> lineage.Record:
    """Its record, which must be there."""
    found = lineage.load(folder)
    assert found is not None
    return found


def test_the_id_stands_for_the_content(tmp_path: Path) -> None:
    raw = lineage.read(artefact(tmp_path / "a"))
    assert raw is not None
    assert raw["id"] == lineage.record_id(raw)
    for key in raw:
        if key != "id":
            assert lineage.record_id({**raw, key: "other"}) != raw["id"]
    assert set(raw["files"]) == {"weights.bin"}
    assert (tmp_path / "a" / "lineage.json").read_bytes() == lineage.spell(raw)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Lineage(
        "pm", "pm", [Parent("init", "sha256:0", "base")], [Source("a", "1", 3)], {"optim": {"lr": 0.1}}, 5, 4, 1e9, metrics={"auc": 0.5}
    )
    record = record_of(artefact(tmp_path / "a", made))
    assert record.lineage.parents == made.parents
    assert record.lineage.data == made.data
    assert record.lineage.config == made.config
    assert (record.lineage.tokens_seen, record.lineage.flops, record.lineage.metrics) == (5, 1e9, {"auc": 0.5})
    assert record.files["weights.bin"].bytes == 7


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tokens_seen", "5", "tokens_seen is '5', expected int"),
        ("tokens_seen", True, "tokens_seen is True, expected int"),
        ("parents", [{"role": "init", "id": 3, "name": "a", "path": None}], "parents[0].id is 3, expected str"),
        ("parents", [{"role": "init", "id": "a"}], "has no key parents[0].name"),
        ("data", {}, "data is {}, expected"),
        ("metrics", {"loss": "low"}, "metrics.loss is 'low', expected float"),
        ("files", {"a": {"bytes": 1.5, "sha256": "x"}}, "files.a.bytes is 1.5, expected int"),
        ("flavour", 1, "flavour is no key of a record"),
        ("lineage_version", lineage.VERSION + 1, "newer version of this package"),
        ("lineage_version", "2", "lineage_version is '2'"),
        ("id", None, "it has no id"),
    ],
)
def test_what_is_no_record_is_refused_by_key(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = artefact(tmp_path / "a") / "lineage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError) as refused:
        lineage.read(tmp_path / "a")
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "lineage.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"lineage\.json"):
        lineage.read(tmp_path)
    assert lineage.read(tmp_path / "nothing") is None


def test_records_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    raw = json.loads((artefact(tmp_path / "a", Lineage("export", "sft", [Parent("init", "x", "y")])) / "lineage.json").read_text())
    raw["lineage_version"] = 1
    del raw["licences"], raw["number_format"], raw["parents"][0]["path"]
    (tmp_path / "a" / "lineage.json").write_text(json.dumps(raw))
    assert record_of(tmp_path / "a").lineage.parents == [Parent("init", "x", "y")]
    raw["lineage_version"] = 2
    (tmp_path / "a" / "lineage.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="has no key"):
        lineage.read(tmp_path / "a")


def test_no_secret_is_written(tmp_path: Path) -> None:
    secrets = {
        "wandb_api_key": "s3cret-1",
        "tracking": {"apiKey": "s3cret-2", "hf_token": "s3cret-3", "password": "s3cret-4", "nested": [{"client-secret": "s3cret-5"}]},
        "url": "https://user:s3cret-6@example.org/data?token=s3cret-7&x=1",
        "arguments": ["--password=s3cret-8", "AKIAS3CRETS3CRET", "hf_s3cretS3cretS3cret"],
        "AWS_SECRET_ACCESS_KEY": "s3cret-9",
        "credentials": ["s3cret-10"],
    }
    kept = {"tokenizer": "dir", "tokens_seen": 5, "max_tokens": "12", "eos_token": "<eom>", "train": "s3://bucket/a.jsonl", "key": "value"}
    data = [Source("https://user:s3cret-11@example.org/a.jsonl", "0", 1)]
    folder = artefact(tmp_path / "a", Lineage("export", "sft", data=data, config={**secrets, **kept}))
    assert "s3cret" not in (folder / "lineage.json").read_text().lower()
    config = record_of(folder).lineage.config
    assert {key: config[key] for key in kept} == kept
    assert config["url"] == f"https://{lineage.REMOVED}@example.org/data?token={lineage.REMOVED}&x=1"


def test_licences_are_inherited_from_all_ancestors(tmp_path: Path, family: Family) -> None:
    export = record_of(family.export).lineage
    assert export.licences == {"CC-BY-4.0": ["all.jsonl", "chat.jsonl"], "bsd-3-clause": ["codegen-base"]}
    assert record_of(family.variant).lineage.licences == export.licences
    again = Lineage("export", "sft", [lineage.parent_of(family.export, "init")], [Source("mine.jsonl", "0", 1)])
    assert record_of(artefact(tmp_path / "a", again)).lineage.licences == {**export.licences, "unknown": ["mine.jsonl"]}
    assert lineage_kinds.licence_of([family.data]) == "CC-BY-4.0"
    assert lineage_kinds.licence_of([family.data, family.export]) == "CC-BY-4.0 AND bsd-3-clause"
    assert lineage_kinds.licence_of([family.data, tmp_path]) is None
    assert lineage_kinds.licence_of([tmp_path / "a"]) is None


def test_a_metric_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "a", Lineage("export", "sft", metrics={"loss": float("nan"), "accuracy": 0.5}))
    assert record_of(folder).lineage.metrics == {"accuracy": 0.5}


def test_a_record_is_not_read_as_data(family: Family, tmp_path: Path) -> None:
    assert [path.name for path in find_files(str(family.data.parent))] == ["all.jsonl", "chat.jsonl"]
    assert [path.name for path in find_files(f"{family.data.parent}/*json*")] == ["all.jsonl", "chat.jsonl"]


def test_front_matter_of_a_card(family: Family, tmp_path: Path) -> None:
    assert huggingface(record_of(family.export).lineage) == {
        "base_model": "codegen-base",
        "base_model_relation": "finetune",
        "license": "other",
        "license_name": "CC-BY-4.0 and bsd-3-clause",
        "datasets": ["all.jsonl"],
    }
    quantised = huggingface(record_of(family.variant).lineage)
    assert (quantised["base_model"], quantised["base_model_relation"]) == ("export", "quantized")
    one = artefact(tmp_path / "one", Lineage("export", "sft", data=[Source("a", "0", 1, licence="Apache-2.0")]))
    assert huggingface(record_of(one).lineage) == {"license": "apache-2.0", "datasets": ["a"]}
    unknown = artefact(tmp_path / "unknown", Lineage("export", "sft", data=[Source("a", "0", 1)]))
    assert "license" not in huggingface(record_of(unknown).lineage)
    merged = artefact(tmp_path / "merged", Lineage("export", "merge", [Parent("init", "1", "a"), Parent("init", "2", "b")]))
    assert huggingface(record_of(merged).lineage) == {"base_model": ["a", "b"], "base_model_relation": "merge"}


def test_in_toto_statement(family: Family) -> None:
    record = record_of(family.export)
    statement = in_toto(record)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]} == {
        name: entry.sha256 for name, entry in record.files.items()
    }
    definition = statement["predicate"]["buildDefinition"]
    assert {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"} == definition.keys()
    names = {dependency["name"]: dependency["digest"] for dependency in definition["resolvedDependencies"]}
    assert names["codegen-base"]["sha256"] == lineage.foreign_id(family.base).removeprefix("files-sha256:")
    assert names["all.jsonl"]["sha256"] == record.lineage.data[0].sha256
    assert all(len(digest.get("sha256", digest.get("gitCommit"))) in (40, 64) for digest in names.values())
    json.dumps(statement)


def test_the_output_of_one_run_is_the_input_of_the_next(family: Family) -> None:
    described = wandb_artifact(record_of(family.export))
    assert described["type"] == "export"
    assert described["name"] == f"export-{record_of(family.export).id[7:23]}"
    assert [parent["role"] for parent in described["metadata"]["parents"]] == ["source", "init", "data", "tokenizer"]


def test_helpers_fill_a_record_of_every_kind(family: Family, tmp_path: Path) -> None:
    """What later stages write is readable, whatever they fill in."""
    parent, before, data = lineage.parent_of(family.export, "source"), lineage.load(family.export), [Source("a", "0", 1)]
    made = {
        "shards": lineage_kinds.shards([parent], data, 10, 2, {"dtype": "uint16"}),
        "model": lineage_kinds.extended_model(parent, before, [], (64, 128), "mean"),
        "data": lineage_kinds.dialogues("tag", [Parent("tagger", "sha256:0", "pm")], data, 5, {"thresholds": [0.1, 0.9]}),
        "variant": lineage_kinds.variant(parent, before, 4, "gptq", 128, Source("calibration.jsonl", "0", 128, "calibration")),
        "evaluation": lineage_kinds.evaluation(parent, data, {"perplexity": 3.0}, {}),
    }
    for kind, one in made.items():
        assert record_of(artefact(tmp_path / kind, one)).lineage.kind == kind
    assert made["variant"].details["bits"] == 4
    assert made["variant"].number_format is None
    assert made["variant"].tokens_seen == 1000
