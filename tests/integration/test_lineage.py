"""Real runs: the chain from converted data to the export of a second training verifies, and a damaged start is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moss_train.artifacts import lineage
from moss_train.artifacts.lineage_graph import family
from moss_train.artifacts.lineage_svg import draw
from moss_train.artifacts.lineage_verify import verify
from tests.checkpoints import flip_bit
from tests.forked import forked
from tests.launch import python, succeeded
from tests.programs.capture_lineage import PAGE, Runs, captures, make
from tests.small_runs import checkpoint

pytestmark = pytest.mark.xdist_group("lineage_of_runs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("lineage"))


def record(artefact: Path) -> lineage.Record:
    """Its record."""
    found = lineage.load(artefact)
    assert found is not None
    return found


def test_the_whole_chain_is_recorded_and_verifies(runs: Runs) -> None:
    report = verify(runs.chat / "export")
    assert (report.problems, report.absent) == ([], [])
    kinds = sorted(found.lineage.kind for _, found in report.checked if found is not None)
    assert kinds == ["checkpoint", "checkpoint", "data", "data", "export", "export", "rendered", "rendered", "tokenizer"]
    graph = family(runs.chat / "export")
    short = {name: node.name.split("-")[0] for name, node in graph.nodes.items()}
    parents = {graph.nodes[name].name: [(role, short[parent]) for role, parent in graph.edges(name)] for name in graph.nodes}
    # What a checkpoint or rendered data state is not drawn twice.
    assert parents["chat/export"] == [("source", "chat/step")]
    assert parents["chat/step-00000010"] == [("init", "base/export"), ("data", "documents")]
    assert parents["base/step-00000020"] == [("data", "documents")]
    rendered = sorted(found for name, found in parents.items() if name.startswith("documents"))
    assert rendered == [
        [("data", "dialogues.jsonl"), ("tokenizer", "tokenizer")],
        [("data", "more.jsonl"), ("tokenizer", "base/export")],
    ]
    first, second = record(runs.base / "export").lineage, record(runs.chat / "export").lineage
    assert graph.total_tokens(graph.root.id) == first.tokens_seen + second.tokens_seen
    assert graph.total_flops(graph.root.id) == first.flops + second.flops > 0
    assert second.licences == {"Apache-2.0": ["dialogues.jsonl", "dialogues_dev.jsonl", "dialogues_train.jsonl#200", "more.jsonl"]}
    assert second.number_format == "bf16"
    assert record(checkpoint(runs.chat, 10)).lineage.number_format == "fp32"


def test_the_cache_entries_have_records_of_what_they_hold(runs: Runs) -> None:
    entries = {}
    for path in (runs.root / "cache").iterdir():
        if (found := lineage.load(path)) is not None:
            entries[found.lineage.kind, found.lineage.data[0].name] = found
    assert set(entries) == {("rendered", "dialogues.jsonl"), ("rendered", "more.jsonl"), ("tokenizer", "dialogues.jsonl")}
    rendered, tokenizer = entries["rendered", "dialogues.jsonl"].lineage, entries["tokenizer", "dialogues.jsonl"].lineage
    assert [(parent.role, parent.name) for parent in rendered.parents][:1] == [("data", "dialogues.jsonl")]
    assert rendered.data[0].records == 200
    assert rendered.data[0].sha256 == record(runs.data).files["dialogues.jsonl"].sha256
    assert rendered.details["counts"]["tokens"] > 1000
    assert tokenizer.details["tokenizer_fingerprint"] == rendered.details["tokenizer_fingerprint"]
    assert tokenizer.data[0].records == 200
    assert "ENTRY.json" in entries["rendered", "dialogues.jsonl"].files


def test_a_moved_run_verifies(runs: Runs, tmp_path: Path) -> None:
    """With its family, and without it."""
    shutil.copytree(runs.root, tmp_path / "elsewhere" / "all")
    report = verify(tmp_path / "elsewhere" / "all" / "runs" / "chat" / "export")
    assert (report.problems, report.absent) == ([], [])
    shutil.copytree(runs.chat / "export", tmp_path / "1" / "2" / "3" / "4" / "5" / "model")
    report = verify(tmp_path / "1" / "2" / "3" / "4" / "5" / "model")
    assert report.problems == []
    assert {parent.role for parent, _ in report.absent} == {"source", "init", "data"}


def refused(runs: Runs, run_dir: Path, *arguments: str) -> str:
    """What a run that may not start says, before a model is built."""
    result = forked(1, "scripts/sft.py", *runs.common, f"data.train={runs.data}", "train.steps=1", f"run.dir={run_dir}", *arguments)
    assert result.returncode == 4, result.stderr[-2000:]
    assert "parameters |" not in result.stdout
    assert "Traceback" not in result.stderr
    assert json.loads((run_dir / "status.json").read_text())["exit_code"] == 4
    return result.stderr


def test_a_run_does_not_start_from_a_damaged_model(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.base / "export", tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("model-*.safetensors")
    flip_bit(weights, 8 * weights.stat().st_size - 9)
    said = refused(runs, tmp_path / "run", f"init_from={tmp_path}/model")
    assert f"init_from={tmp_path}/model is not what its lineage.json says" in said
    assert f"{weights.name} is changed" in said
    assert "init_unverified=true" in said
    result = succeeded(
        forked(
            1,
            "scripts/sft.py",
            *runs.common,
            "train.steps=1",
            f"run.dir={tmp_path}/run",
            f"init_from={tmp_path}/model",
            "init_unverified=true",
        )
    )
    assert "is not verified (init_unverified=true)" in result.stdout
    assert record(tmp_path / "run" / "export").lineage.config["init_unverified"] is True


def test_a_run_does_not_start_with_a_changed_tokenizer(runs: Runs, tmp_path: Path) -> None:
    (tokenizer,) = (path.parent for path in (runs.root / "cache").glob("tokenizer-*/tokenizer.json"))
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text().replace("2048", "4096"))
    assert "tokenizer_config.json is changed" in refused(runs, tmp_path / "run", f"tokenizer.path={tmp_path}/tokenizer")


def test_other_jobs_look_at_sizes_and_the_record(runs: Runs, tmp_path: Path) -> None:
    """Enough for a file that was cut or is missing, at no cost."""
    shutil.copytree(runs.base / "export", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    for script, arguments in (("scripts/generate.py", ["prompt=hello"]), ("scripts/export.py", [f"out={tmp_path}/out"])):
        result = forked(1, script, f"model={tmp_path}/model", *arguments)
        assert result.returncode == 4
        assert "generation_config.json is missing" in result.stderr
        assert "Traceback" not in result.stderr
    found = record(runs.chat / "export-fp16").lineage
    assert (found.number_format, found.parents[0].role) == ("fp16", "source")
    assert verify(runs.chat / "export-fp16").problems == []


def test_the_commands_work_without_torch(runs: Runs) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from moss_train.artifacts.lineage_tool import main; sys.exit(main(sys.argv[1:]))"
    )
    result = succeeded(python_code(code, "verify", str(runs.chat / "export")))
    assert "every byte of 9 artefacts, all good" in result.stdout
    assert "chat/export" in succeeded(python("scripts/lineage.py", "show", str(runs.chat / "export"))).stdout


def python_code(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS`."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_wandb_is_told_of_inputs_and_outputs(runs: Runs) -> None:
    """Offline: inputs are in the configuration; outputs are artifacts, by names that follow from their ids."""
    assert "was not told" not in runs.shown
    (logged,) = (runs.chat / "wandb").glob("offline-run-*/run-*.wandb")
    content = logged.read_bytes()
    start = record(runs.base / "export").id
    assert start.encode() in content
    for made in (checkpoint(runs.chat, 10), runs.chat / "export"):
        found = record(made)
        assert f"{found.lineage.kind}-{found.id[7:23]}".encode() in content


def shape_of(text: str) -> list[str]:
    """Lines without what differs from run to run: ids and figures."""
    plain = re.sub(r"sha256:[0-9a-f]{12}|\b[0-9a-f]{12}\b|documents-[0-9a-f]{8}|tokenizer-[0-9a-f]{8}", "ID", text)
    return [re.sub(r"[\d.,]+ ?[kMGTP]?", "0", line).rstrip() for line in plain.strip().splitlines()]


def test_the_page_shows_what_is_printed(runs: Runs) -> None:
    """docs/lineage.md, with other ids and figures."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```console\n\$ (.*?)\n(.*?)```", page, re.DOTALL))
    printed = captures(runs)
    assert set(blocks) == set(printed)
    for command, text in printed.items():
        assert shape_of(blocks[command]) == shape_of(text), command
    drawn = (PAGE.parent / "images" / "lineage.svg").read_text(encoding="utf-8")
    kinds = re.compile(r">([A-Z]+ · ?[A-Z_]+)<")
    assert kinds.findall(drawn) == kinds.findall(draw(family(runs.chat / "export")))
