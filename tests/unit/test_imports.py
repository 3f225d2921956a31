"""Who may import whom: the table of the architecture, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "moss_train"

# Package -> packages it may import. `errors`, `files`, `cores`, `ports` and the standard library are open to all, and so is each package's
# own inside.
ALLOWED = {
    "model": set(),
    "data": {"artifacts"},
    "artifacts": {"model", "data", "config"},
    "train": {"config", "model", "data", "artifacts"},
    "inference": {"model", "data", "artifacts", "config"},
    "evaluate": {"model", "data", "artifacts", "inference", "pm", "config"},
    "pretrain": {"config", "model", "data", "train", "artifacts", "inference", "evaluate"},
    "sft": {"config", "model", "data", "train", "artifacts", "inference", "evaluate"},
    "pm": {"config", "model", "data", "train", "artifacts", "inference", "evaluate"},
    "benchmark": {"config", "model", "data", "train", "pretrain", "sft", "inference", "artifacts"},
    "cli": {"model", "data", "train", "artifacts", "inference", "evaluate", "pretrain", "sft", "pm", "config"},
}
# (importer, package) -> the modules of that package which are open to it, with their parts, such as `lineage_*`.
OPEN_MODULES = {
    ("train", "artifacts"): {"lineage"},
    ("data", "artifacts"): {"lineage"},
    # Evaluation answers, checks and scores as the jobs do; it trains, ranks and tags nothing.
    ("evaluate", "pm"): {"score", "sample", "checkers", "ranking", "levels"},
}
# Libraries with one importer.
# The stock side of a benchmark is what a user would write without this project.
OWNERS = {"deepspeed": {"train/engine.py", "benchmark/sft_sides.py"}, "hydra": {"cli.py"}, "wandb": {"train/tracking.py"}}
TORCH_FREE = [
    "errors.py",
    "files.py",
    "cores.py",
    "ports.py",
    "config.py",
    "cli.py",
    "train/manifest.py",
    "train/listing.py",
    "pm/rank_config.py",
    "pm/sample_config.py",
    "pm/score_config.py",
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "artifacts").glob("lineage*.py")),
    *sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("**/config.py") if path.parent != PACKAGE),
]

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules a file imports, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute in this package"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def is_configuration(name: str) -> bool:
    """Whether a module, or a name in it, is of `config.py` or of a job's `*_config.py`."""
    return any(part == "config" or part.endswith("_config") for part in name.split(".")[1:3])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_only_what_the_table_allows(path: Path) -> None:
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    parts = {name.split(".")[1] for name in imported_modules(path) if name.startswith("moss_train.")} - {
        own,
        "errors",
        "files",
        "cores",
        "ports",
        "__version__",
    }
    if own in ("errors", "config", "files", "cores", "ports") or path.name == "config.py":
        names = {name for name in imported_modules(path) if name.startswith("moss_train.")}
        others = {name for name in names if name.split(".")[1] not in ("errors", "files") and not is_configuration(name)}
        assert not others, f"{path} may import configuration only, but imports {sorted(others)}"
    else:
        assert parts <= ALLOWED[own], f"{path} may not import {sorted(parts - ALLOWED[own])}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_some_packages_are_open_in_some_modules_only(path: Path) -> None:
    own = path.parts[0].removesuffix(".py")
    for (importer, package), modules in OPEN_MODULES.items():
        if own == importer:
            names = {name for name in imported_modules(path) if name.startswith(f"moss_train.{package}.")}
            others = {name for name in names if name.split(".")[2].split("_")[0] not in modules}
            assert not others, f"{path} may import {sorted(modules)} of {package} only, but imports {sorted(others)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_libraries_with_one_owner_are_imported_there_only(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported_modules(path)}
    for library, owners in OWNERS.items():
        assert library not in roots or path.as_posix() in owners, f"{library} is imported by {path}; only {owners} may"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_configuration_needs_the_standard_library_only(name: str) -> None:
    """So that a wrong configuration is refused before torch is loaded."""
    module = "moss_train." + name.removesuffix(".py").replace("/", ".")
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'deepspeed', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "moss_train",
        "moss_train.data.tokenizer",
        "moss_train.inference.generate",
        "moss_train.inference.plugins",
        "moss_train.artifacts.export",
        "moss_train.evaluate.main",
        "moss_train.evaluate.transfer",
        "moss_train.pm.sample",
        "moss_train.pm.rank",
        "moss_train.pm.score_job",
        "moss_train.evaluate.preference_suite",
        "moss_train.evaluate.control",
    ],
)
def test_what_needs_no_training_works_without_deepspeed(module: str) -> None:
    code = f"import sys; sys.modules['deepspeed'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True)
