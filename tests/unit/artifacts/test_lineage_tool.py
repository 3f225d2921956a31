"""`lineage show|verify|diff|children`: what they print, for people and for programs, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moss_train.artifacts import lineage, lineage_verify
from moss_train.artifacts.lineage import Lineage, Parent, parent_of
from moss_train.artifacts.lineage_graph import family as graph_of
from moss_train.artifacts.lineage_tool import main
from moss_train.artifacts.lineage_verify import verify
from tests.families import Family


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Standard output, the exit code as expected."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def test_show_is_a_tree_of_eighty_columns(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "show", family.export, "--in", family.root)
    assert max(map(len, shown.splitlines())) <= 80
    for said in (
        "sft/export  export · sft  sha256:",
        "└── source: sft/step-00000002  checkpoint · sft",
        "├── init: codegen-base  made elsewhere",
        "licence bsd-3-clause",
        "1,000 tokens (800 with loss) · 6 GFLOPs",
        "valid/loss 2.125",
        "made from it",
        "evaluation  evaluation · evaluate",
    ):
        assert said in shown, said
    assert shown.count("codegen-base  made elsewhere") == 1


def test_show_writes_pictures(family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "show", family.export, "--svg", tmp_path / "a.svg", "--html", tmp_path / "a.html")
    assert f"wrote {tmp_path / 'a.svg'}" in shown
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert main(["show", str(family.export), "--svg", str(tmp_path / "nowhere" / "a.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_show_for_programs(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "show", family.variant, "--json"))
    nodes = {node["name"]: node for node in told["nodes"]}
    assert told["root"] == nodes["sft/export-int8"]["id"]
    assert nodes["sft/export-int8"]["flops_of_all_trainings"] == 6e9
    assert nodes["codegen-base"]["kind"] == "made elsewhere"
    recorded = lineage.load(family.variant)
    assert recorded is not None
    assert nodes["sft/export-int8"]["details"] == recorded.lineage.details != {}
    assert json.loads(run(capsys, "show", family.export, "--as", "huggingface"))["base_model"] == "codegen-base"
    assert json.loads(run(capsys, "show", family.export, "--as", "in-toto"))["_type"].startswith("https://in-toto.io/")


def test_show_of_a_directory_made_elsewhere(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert "codegen-base  made elsewhere" in run(capsys, "show", family.base)


def test_figures_are_added_up_over_trainings(family: Family, tmp_path: Path) -> None:
    """An export is of the same run as its checkpoint, and counts once."""
    (tmp_path / "second").mkdir()
    again = Lineage("export", "preference", [parent_of(family.export, "init")], tokens_seen=500, flops=3e9)
    lineage.write(tmp_path / "second", again)
    graph = graph_of(tmp_path / "second", [family.root])
    assert [node.lineage.stage for node in graph.runs(graph.root.id)] == ["preference", "sft"]
    assert graph.total_tokens(graph.root.id) == 1500
    assert graph.total_flops(graph.root.id) == 9e9
    for artefact in (family.checkpoint, family.export, family.variant):
        graph = graph_of(artefact)
        assert (graph.total_tokens(graph.root.id), graph.total_flops(graph.root.id)) == (1000, 6e9)


def test_verify_says_what_was_looked_at(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "verify", family.export)
    assert "sft/export  export, 9 files" in shown
    assert "codegen-base  made elsewhere, known by its files: good" in shown
    assert "every byte of 6 artefacts, all good" in shown
    assert "sizes and records of 6 artefacts, all good" in run(capsys, "verify", "--quick", family.export)


def test_verify_of_a_folder_of_artefacts(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", family.root).count("all good") == len(family.recorded)


def test_an_ancestor_of_several_is_read_and_told_once(
    own: Family, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    one = lineage_verify.verify_one
    monkeypatch.setattr(lineage_verify, "verify_one", lambda place, hashes: (read.append(place), one(place, hashes))[1])
    shown = run(capsys, "verify", own.root)
    assert len(read) == len(set(read)) >= len(own.recorded)
    assert shown.count("sft/export  export, 9 files") == 1
    # One that is wrong is told by every artefact that descends from it.
    (own.export / "extra.bin").write_text("x")
    assert run(capsys, "verify", own.export, own.variant, code=4).count("extra.bin is unlisted") == 2


def test_verify_fails_with_exit_code_4(own: Family, capsys: pytest.CaptureFixture[str]) -> None:
    (own.export / "extra.bin").write_text("x")
    shown = run(capsys, "verify", own.variant, code=4)
    assert "sft/export  export, 9 files, 43" in shown
    assert "1 wrong" in shown
    assert "unlisted: extra.bin is unlisted" in shown
    (told,) = json.loads(run(capsys, "verify", own.variant, "--json", code=4))
    assert told["good"] is False
    assert told["problems"] == [
        {
            "path": str(own.export),
            "file": "extra.bin",
            "kind": "unlisted",
            "message": "extra.bin is unlisted: it was not there when the artefact was made",
        }
    ]


@pytest.mark.parametrize("command", ["verify", "show", "children"])
def test_what_is_not_there_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, str(tmp_path / "nothing")]) == 4
    assert "nothing: no such file or directory" in capsys.readouterr().err


def test_what_has_no_record_cannot_be_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 4
    assert "nothing below it has" in capsys.readouterr().err


def test_usage_errors_are_exit_code_2(tmp_path: Path) -> None:
    for arguments in ([], ["prove", str(tmp_path)], ["verify"], ["diff", str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_diff_names_what_differs(family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    config = {"optim": {"lr": 3e-3, "decay": True}}
    made = Lineage("export", "sft", [Parent("init", "sha256:0", "codegen-2b")], config=config, metrics={"valid/loss": 2.0})
    lineage.write(tmp_path / "other", made)
    shown = run(capsys, "diff", family.export, tmp_path / "other")
    for said in ("optim.lr", "0.001", "0.003", "optim.decay", "codegen-2b", "valid/loss", "tokens_seen"):
        assert said in shown, said
    told = json.loads(run(capsys, "diff", family.export, tmp_path / "other", "--json"))
    changed = {(one["section"], one["key"]): (one["left"], one["right"]) for one in told["differences"]}
    assert changed["config", "optim.lr"] == (0.001, 0.003)
    assert changed["config", "optim.decay"] == (None, True)
    assert changed["metrics", "valid/loss"] == (2.125, 2.0)
    assert ("kind", "kind") not in changed
    assert "the records say the same" in run(capsys, "diff", family.export, family.export)


def test_children_are_found_below_roots(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "children", family.data, family.root).splitlines()
    assert {line.split()[0] for line in shown} == {
        str(path) for path in (family.rendered, family.checkpoint, family.export, family.variant, family.evaluation)
    }
    told = json.loads(run(capsys, "children", family.checkpoint, family.root / "runs", "--json"))
    assert [one["kind"] for one in told] == ["export", "variant"]
    assert "nothing was made from it" in run(capsys, "children", family.evaluation, family.root)


def test_a_reader_that_has_seen_enough(family: Family, repository: Path) -> None:
    command = f"{sys.executable} scripts/lineage.py show {family.export} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout.startswith("sft/export")
    assert done.stderr == ""


def test_places_may_be_named_from_where_one_stands(
    family: Family, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(family.export.parent)
    assert "good" in run(capsys, "verify", ".", "--in", family.root)
    monkeypatch.chdir(family.root)
    assert "sft/export-int8" in run(capsys, "children", family.export, ".")


def test_a_record_cannot_have_a_machine_read(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent made elsewhere is hashed only where it has as few files as a model has."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(30):
        (many / str(number)).write_text("")
    child = tmp_path / "child"
    child.mkdir()
    (child / "a").write_text("a")
    lineage.write(child, Lineage("export", "test", [Parent("init", f"files-sha256:{'0' * 64}", "many", str(many))]))
    read: list[Path] = []
    monkeypatch.setattr("moss_train.artifacts.lineage_places.foreign_id", lambda directory: read.append(directory) or "files-sha256:other")
    monkeypatch.setattr("moss_train.artifacts.lineage_places._MOST_FOREIGN_FILES", 29)
    verify(child)
    assert read == []
    monkeypatch.setattr("moss_train.artifacts.lineage_places._MOST_FOREIGN_FILES", 30)
    verify(child)
    assert read == [many]
