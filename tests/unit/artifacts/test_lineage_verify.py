"""What verifying names, and that it raises no false alarm."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moss_train.artifacts import lineage, lineage_verify
from moss_train.artifacts.lineage_verify import Problem, Report, require, verify
from moss_train.artifacts.lineage_weights import read_header
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError
from tests.families import Family, make


def found(report: Report) -> list[tuple[str, str, str]]:
    """(artefact, file, kind) of each problem."""
    return [(problem.artefact.name, problem.file, problem.kind) for problem in report.problems]


def rewrite(artefact: Path, **changes: Any) -> None:
    """Writes a new record over the files as they now are: what whoever makes a wrong artefact would record."""
    record = lineage.load(artefact)
    assert record is not None
    base = record.lineage.parents
    parents = [replace(parent, path=str((artefact / parent.path).resolve()) if parent.path else None) for parent in base]
    lineage.write(artefact, replace(record.lineage, parents=parents, **changes))


def test_the_family_is_good(family: Family) -> None:
    for artefact in family.recorded:
        report = verify(artefact)
        assert report.problems == []
        assert report.absent == []
    assert len(verify(family.evaluation).checked) == 7
    assert len(verify(family.evaluation, ancestors=False).checked) == 1


def test_what_is_wrong_is_named_by_kind_and_file(own: Family) -> None:
    for name in ("model-00001-of-00003.safetensors", "config.json", "README.md"):
        content = (own.export / name).read_bytes()
        (own.export / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert found(verify(own.export)) == [("export", name, "changed")]
        assert found(verify(own.variant)) == [("export", name, "changed")], "an ancestor's file is named from below"
        (own.export / name).write_bytes(content + b" ")
        assert found(verify(own.export)) == [("export", name, "changed")]
        (own.export / name).unlink()
        assert ("export", name, "missing") in found(verify(own.export))
        (own.export / name).write_bytes(content)
    assert found(verify(own.export)) == []


@pytest.mark.parametrize(
    "name", ["extra.bin", ".hidden", "below/extra.bin", "lineage.json.bak", "below/lineage.json", "link", "folder_link"]
)
def test_an_extra_file_is_unlisted(own: Family, name: str) -> None:
    path = own.export / name
    path.parent.mkdir(exist_ok=True)
    if name == "link":
        path.symlink_to("nothing")
    elif name == "folder_link":
        path.symlink_to(own.base)
    else:
        path.write_text("x")
    assert found(verify(own.export)) == [("export", name, "unlisted")]


def test_a_manifest_belongs_to_a_checkpoint_only(own: Family) -> None:
    shutil.copy(own.checkpoint / "MANIFEST.json", own.export / "MANIFEST.json")
    assert found(verify(own.export)) == [("export", "MANIFEST.json", "unlisted")]
    (own.export / "MANIFEST.json").unlink()
    (own.checkpoint / "MANIFEST.json").unlink()
    assert found(verify(own.export)) == [("step-00000002", "MANIFEST.json", "changed")]


def test_an_empty_folder_is_no_file(own: Family) -> None:
    (own.export / "empty").mkdir()
    assert found(verify(own.export)) == []


def test_a_file_beside_a_single_file_is_its_own_affair(own: Family) -> None:
    (own.data.parent / "other.jsonl").write_text("{}\n")
    assert found(verify(own.data)) == []
    own.data.write_bytes(own.data.read_bytes().replace(b"h", b"H", 1))
    assert found(verify(own.data)) == [("all.jsonl", "all.jsonl", "changed")]
    assert found(verify(own.rendered)) == [("all.jsonl", "all.jsonl", "changed")]


def test_a_record_cannot_name_files_elsewhere(own: Family) -> None:
    raw = lineage.read(own.tokenizer)
    assert raw is not None
    raw["files"]["../data/all.jsonl"] = {"bytes": 1, "sha256": "0"}
    raw["id"] = lineage.record_id(raw)
    (own.tokenizer / "lineage.json").write_bytes(lineage.spell(raw))
    assert found(verify(own.tokenizer)) == [("tokenizer", "../data/all.jsonl", "changed")]


def test_swapped_tokenizer(own: Family) -> None:
    """Another tokenizer in its place is named; so is one that was written into the record of a new artefact."""
    other = MossTokenizer.train(["another text altogether, with other words"] * 3, 320)
    other.save(own.export)
    assert {("export", "tokenizer.json", "changed")} <= set(found(verify(own.export)))
    rewrite(own.export)
    report = verify(own.export)
    assert found(report) == [("export", "tokenizer.json", "declared")]
    assert "details.tokenizer_fingerprint" in report.problems[0].message


def test_a_tokenizer_larger_than_the_vocabulary(own: Family) -> None:
    record = lineage.load(own.export)
    assert record is not None
    other = MossTokenizer.train([" ".join(f"word{number} {number * 7919}" for number in range(400))], 400)
    other.save(own.export)
    details = {key: value for key, value in record.lineage.details.items() if key != "tokenizer_fingerprint"}
    rewrite(own.export, details=details)
    report = verify(own.export)
    assert found(report) == [("export", "tokenizer.json", "declared")]
    assert "ids up to 399" in report.problems[0].message
    assert "only 320 rows" in report.problems[0].message
    assert "the controls <|endoftext|> <eoh> <eom> <eot> <eoc> <eor> are among those beyond" in report.problems[0].message


def test_a_vocabulary_that_is_not_the_embedding(own: Family) -> None:
    config = json.loads((own.export / "config.json").read_text())
    (own.export / "config.json").write_text(json.dumps(config | {"vocab_size": 384}))
    rewrite(own.export)
    messages = [problem.message for problem in verify(own.export).problems]
    assert len(messages) == 2
    assert any("vocab_size 384, but transformer.wte.weight has 320 rows" in message for message in messages)
    assert any("vocab_size 384, but lm_head.weight has 320 rows" in message for message in messages)


@pytest.mark.parametrize(("key", "value", "where"), [("dtype", "bfloat16", "config.json says bfloat16"), (None, None, "number_format")])
def test_a_number_format_that_is_not_that_of_the_tensors(own: Family, key: str | None, value: str | None, where: str) -> None:
    if key is not None:
        config = json.loads((own.export / "config.json").read_text())
        (own.export / "config.json").write_text(json.dumps(config | {key: value}))
        rewrite(own.export)
    else:
        rewrite(own.export, number_format="bf16")
    report = verify(own.export)
    assert {problem.kind for problem in report.problems} == {"declared"}
    assert any(where in problem.message and "is F16" in problem.message for problem in report.problems)


def test_declared_bits_are_held_against_packed_shapes(own: Family) -> None:
    """As in published eight-bit weights that say `wbits: 4`."""
    record = lineage.load(own.variant)
    assert record is not None
    rewrite(own.variant, details=record.lineage.details | {"bits": 4})
    assert [problem.message.split(" but ")[0] for problem in verify(own.variant).problems] == ["lineage.json (details.bits) says 4 bits,"]
    rewrite(own.variant, details=record.lineage.details)
    config = json.loads((own.variant / "config.json").read_text())
    (own.variant / "config.json").write_text(json.dumps(config | {"wbits": 4, "groupsize": 128}))
    rewrite(own.variant)
    assert "config.json (wbits) says 4 bits, but" in verify(own.variant).problems[0].message


@pytest.mark.parametrize(("bits", "declared", "good"), [(4, 4, True), (8, 8, True), (8, 4, False), (4, 8, False)])
def test_bits_of_the_layout_of_gptq(own: Family, bits: int, declared: int, good: bool) -> None:
    """Words of 32 bits along the inputs, a row of scales for each group."""
    for path in own.variant.glob("model*"):
        path.unlink()
    inputs, outputs, group = 16, 48, 8
    module = "transformer.h.0.attn.qkv_proj"
    tensors = {
        f"{module}.qweight": np.zeros((inputs * bits // 32, outputs), dtype=np.int32),
        f"{module}.qzeros": np.zeros((inputs // group, outputs * bits // 32), dtype=np.int32),
        f"{module}.scales": np.ones((inputs // group, outputs), dtype=np.float16),
        f"{module}.g_idx": np.arange(inputs, dtype=np.int32) // group,
    }
    save_file(tensors, own.variant / "model.safetensors")
    config = json.loads((own.variant / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": declared}
    (own.variant / "config.json").write_text(json.dumps(config))
    rewrite(own.variant, details={"bits": declared, "group_size": group})
    assert bool(verify(own.variant).problems) is not good
    rewrite(own.variant, details={"bits": bits, "group_size": 16})
    assert any("group_size) says 16, but" in problem.message for problem in verify(own.variant).problems)


def test_a_shard_that_the_index_names_and_the_record_does_not(own: Family) -> None:
    """Whoever wrote the record lost it: the files are as recorded, and the model is not whole."""
    (own.export / "model-00002-of-00003.safetensors").unlink()
    rewrite(own.export)
    assert found(verify(own.export)) == [("export", "model-00002-of-00003.safetensors", "declared")]


def test_a_tensor_in_another_shard_than_the_index_says(own: Family) -> None:
    index = json.loads((own.export / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.bias"] = "model-00001-of-00003.safetensors"
    (own.export / "model.safetensors.index.json").write_text(json.dumps(index))
    rewrite(own.export)
    assert "lm_head.bias is not in model-00001-of-00003.safetensors" in verify(own.export).problems[0].message


def test_headers_of_safetensors_are_those_of_the_library(family: Family) -> None:
    path = family.variant / "model.safetensors"
    types = {np.dtype(np.int8): "I8", np.dtype(np.float16): "F16"}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read_header(path).items()} == {
        name: (types[value.dtype], value.shape) for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}more", b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError):
        read_header(tmp_path / "model.safetensors")


# ---------------------------------------------------------------------- ancestors


def test_no_false_alarm_after_copying_elsewhere(family: Family, tmp_path: Path) -> None:
    shutil.copytree(family.root, tmp_path / "deep" / "below" / "copy")
    for artefact in family.at(tmp_path / "deep" / "below" / "copy").recorded:
        report = verify(artefact)
        assert (report.problems, report.absent) == ([], [])
        assert {path.is_relative_to(tmp_path) for path, _ in report.checked} == {True}


def test_one_artefact_copied_alone_names_absent_parents(family: Family, tmp_path: Path) -> None:
    alone = tmp_path / "a" / "b" / "c" / "d" / "e" / "alone"
    shutil.copytree(family.export, alone)
    report = verify(alone)
    assert report.problems == []
    assert {(parent.role, parent.name) for parent, _ in report.absent} == {
        ("source", "step-00000002"),
        ("init", "codegen-base"),
        ("data", family.rendered.name),
        ("tokenizer", "tokenizer"),
    }
    assert all(parent.id for parent, _ in report.absent)
    with_roots = verify(alone, [family.root])
    assert (with_roots.problems, with_roots.absent) == ([], [])
    assert len(with_roots.checked) == 6


def test_a_moved_family_is_found_by_its_ids(own: Family) -> None:
    (own.root / "elsewhere").mkdir()
    for artefact in (own.tokenizer, own.checkpoint, own.export):
        artefact.rename(own.root / "elsewhere" / f"moved-{artefact.name}")
    report = verify(own.evaluation)
    assert report.problems == []
    assert {path.name for path, _ in report.checked} >= {"moved-export", "moved-step-00000002", "moved-tokenizer"}


def test_a_renamed_checkpoint_is_good(own: Family) -> None:
    own.checkpoint.rename(own.checkpoint.with_name("best"))
    report = verify(own.export)
    assert (report.problems, report.absent) == ([], [])


def test_replaced_parent(own: Family, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=8)
    shutil.rmtree(own.export)
    shutil.copytree(other.export, own.export)
    for child in (own.variant, own.evaluation):
        report = verify(child)
        assert found(report) == [("export", "lineage.json", "replaced")]
        assert "is no longer the parent export" in report.problems[0].message
    # The right one elsewhere makes up for it.
    right = tmp_path / "right"
    shutil.copytree(other.root, right)
    assert found(verify(other.variant)) == []


def test_a_parent_moved_aside_is_found_although_another_stands_in_its_place(own: Family, tmp_path: Path) -> None:
    """As when a run directory is used again."""
    other = make(tmp_path / "other", seed=8)
    own.checkpoint.parent.parent.rename(own.root / "runs" / "sft.1")
    shutil.copytree(other.checkpoint.parent.parent, own.root / "runs" / "sft")
    report = verify(own.root / "runs" / "sft.1" / "export-int8")
    assert report.problems == []
    report = verify(own.evaluation)
    assert report.problems == []
    assert own.root / "runs" / "sft.1" / "export" in [path for path, _ in report.checked]


def test_a_parent_that_has_lost_its_record(own: Family) -> None:
    (own.checkpoint / "lineage.json").unlink()
    report = verify(own.export)
    assert found(report) == [("step-00000002", "lineage.json", "missing")]


def test_a_changed_directory_made_elsewhere(own: Family) -> None:
    config = own.base / "config.json"
    config.write_text(config.read_text() + " ")
    assert found(verify(own.checkpoint)) == [("codegen-base", "lineage.json", "replaced")]
    assert found(verify(own.checkpoint, reads=False)) == []
    shutil.rmtree(own.base)
    report = verify(own.checkpoint)
    assert report.problems == []
    assert [parent.name for parent, _ in report.absent] == ["codegen-base"]


def test_a_directory_made_elsewhere_is_found_below_a_named_root(own: Family) -> None:
    (own.root / "hub").mkdir()
    own.base.rename(own.root / "hub" / "codegen-base")
    report = verify(own.checkpoint, [own.root / "hub", own.root])
    assert (report.problems, report.absent) == ([], [])


def test_parents_of_a_damaged_record_are_not_believed(own: Family) -> None:
    path = own.export / "lineage.json"
    path.write_text(path.read_text().replace("files-sha256:", "files-sha256:0", 1))
    assert found(verify(own.export)) == [("export", "lineage.json", "changed")]


# ---------------------------------------------------------------------- starting


def quiet(message: str) -> None:
    """Says nothing."""


def test_a_start_is_refused_with_every_problem(own: Family) -> None:
    (own.export / "extra.bin").write_text("x")
    (own.export / "README.md").unlink()
    with pytest.raises(CheckpointError) as refused:
        require(own.export, "init_from", "init_unverified=true", quiet)
    for said in ("init_from=", "extra.bin is unlisted", "README.md is missing", "init_unverified=true"):
        assert said in str(refused.value)
    assert refused.value.exit_code == 4


def test_a_start_looks_at_ancestors_no_more(own: Family) -> None:
    (own.checkpoint / "state.json").write_text("{}")
    require(own.export, "init_from", "init_unverified=true", quiet)


def test_a_directory_made_elsewhere_is_accepted_with_a_line(own: Family) -> None:
    said: list[str] = []
    require(own.base, "init_from", "init_unverified=true", said.append)
    assert len(said) == 1
    assert "made elsewhere" in said[0]


def test_sizes_alone_are_cheap_and_see_less(own: Family) -> None:
    weights = own.export / "model-00001-of-00003.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    require(own.export, "model", "", quiet, reads=False)
    with pytest.raises(CheckpointError, match="model-00001"):
        require(own.export, "model", "", quiet)
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="model-00001"):
        require(own.export, "model", "", quiet, reads=False)


def test_a_newer_record_is_said_to_be_newer(own: Family) -> None:
    raw = lineage.read(own.export)
    assert raw is not None
    raw["lineage_version"] += 1
    raw["id"] = lineage.record_id(raw)
    (own.export / "lineage.json").write_bytes(lineage.spell(raw))
    with pytest.raises(CheckpointError, match="newer version"):
        verify(own.export)


def test_a_file_that_cannot_be_read_is_named(own: Family) -> None:
    victim = own.export / "README.md"
    victim.chmod(0)
    if os.access(victim, os.R_OK):
        pytest.skip("this user may read everything")
    assert ("export", "README.md", "changed") in found(verify(own.export))


def test_large_files_are_hashed_side_by_side(own: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(own.export.glob("model*"))
    one_by_one = lineage_verify.hash_all(paths)
    monkeypatch.setattr(lineage_verify, "_WORTH_THREADS", 1)
    assert lineage_verify.hash_all(paths) == one_by_one


def test_problems_tell_where(own: Family) -> None:
    (own.export / "extra.bin").write_text("x")
    assert verify(own.variant).problems == [
        Problem(own.export, "extra.bin", "unlisted", "extra.bin is unlisted: it was not there when the artefact was made")
    ]
