"""Puts a corpus together when all tasks are complete: counts, rejects, corpus.json, lineage.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.lineage import Parent, Source
from moss_train.data.corpus import Corpus, open_corpus
from moss_train.data.corpus_writer import describe_corpus, fingerprint_of, write_description
from moss_train.data.prepare.ledger import Ledger
from moss_train.data.prepare.plan import WORK, Plan, read_plan
from moss_train.errors import DataError

REJECTS = "rejects.jsonl"


def finish(out: Path) -> Corpus:
    """Writes what describes a corpus, and removes what was kept for tasks.

    Args:
        out: The corpus; all its tasks are complete.

    Raises:
        DataError: A source kept nothing, or has more bad records than may be left out.
    """
    plan = read_plan(out)
    if plan is None:
        return open_corpus(out)
    sources: dict[str, dict[str, Any]] = {}
    rejects: list[dict[str, str]] = []
    for name in plan.settings["sources"]:
        sources[name] = _describe_source(out, plan, name, rejects)
    rejected = (json.dumps({"source": one["source"], **one}, ensure_ascii=False) + "\n" for one in rejects)
    if rejects:
        files.replace_content(out / REJECTS, "".join(rejected).encode())
    tokenizer = {key: plan.tokenizer[key] for key in ("fingerprint", "size", "vocab_size", "endoftext")}
    write_description(out, describe_corpus(tokenizer, sources, plan.settings, plan.inputs_fingerprint))
    _write_lineage(out, plan, sources)
    files.sync_directory(out)
    files.remove_directory(out / WORK)
    return open_corpus(out)


def _describe_source(out: Path, plan: Plan, name: str, rejects: list[dict[str, str]]) -> dict[str, Any]:
    """The entry of a source in corpus.json; its bad records go to `rejects`."""
    whole = Ledger()
    shards: list[dict[str, Any]] = []
    digests: list[str] = []
    for rank, task in enumerate(plan.tasks):
        if task.source != name:
            continue
        told = _read_ledger(out, rank)
        counts = Ledger.from_json(told["counts"])
        counts.problems = told["rejects"]
        whole.add(counts)
        rejects += [{"source": name, **one} for one in told["rejects"]]
        digests.append(told["digest"])
        if (record := told["shard"]) is not None:
            shards.append({"name": task.shard} | {key: record[key] for key in ("documents", "tokens", "bytes", "sha256")})
    settings = plan.source(name)
    bad, read = sum(whole.bad.values()), whole.read.documents
    if bad > plan.settings["max_bad_share"] * (bad + read):
        shown = "\n".join(one["problem"] for one in whole.problems)
        totals = ", ".join(f"{code} {number}" for code, number in whole.bad.most_common())
        raise DataError(
            f"{name}: {bad} bad of {bad + read} records, more than the {plan.settings['max_bad_share']:.1%} that may be skipped "
            f"(max_bad_share):\n{shown}\ntotals: {totals}"
        )
    if not shards:
        reasons = ", ".join(f"{reason} {counted.documents:,}" for reason, counted in whole.dropped.items()) or "nothing was read"
        raise DataError(f"{name}: no document is left ({reasons}); leave the source out, or filter less, in another directory.")
    summed = {what: sum(shard[what] for shard in shards) for what in ("documents", "tokens", "bytes")}
    described = {"language": settings["language"], "licence": settings["licence"], **summed, "fingerprint": fingerprint_of(digests)}
    return {**described, "counts": whole.to_json() | {"files_left_out": plan.left_out[name]}, "shards": shards}


def _read_ledger(out: Path, rank: int) -> dict[str, Any]:
    path = out / WORK / "ledgers" / f"{rank:05d}.json"
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return told
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove {out}, and begin again.") from None


def _write_lineage(out: Path, plan: Plan, sources: dict[str, dict[str, Any]]) -> None:
    """The record of a corpus; the hashes of shards are those its tasks found."""
    parents = [Parent(**plan.tokenizer["parent"])] if plan.tokenizer["parent"] else []
    data = [
        Source(name, entry["fingerprint"], entry["counts"]["read"]["documents"], licence=entry["licence"])
        for name, entry in sources.items()
    ]
    for file in plan.evaluation:
        file.require_unchanged()
        data.append(Source(Path(file.path).name, files.hash_file(Path(file.path)).sha256, 0, "decontamination"))
    details = {
        "tokenizer_fingerprint": plan.tokenizer["fingerprint"],
        "sources": {name: {key: entry[key] for key in ("language", "documents", "tokens", "bytes")} for name, entry in sources.items()},
    }
    tokens, documents = (sum(entry[what] for entry in sources.values()) for what in ("tokens", "documents"))
    record = lineage_kinds.shards(parents, data, tokens, documents, details)
    record.config = plan.settings
    lineage.write(out, record, dict(sorted(_hashed_files(out, sources))))
    files.sync_file(out / lineage.FILE_NAME)


def _hashed_files(out: Path, sources: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Size and sha256 of every file; arrays are not read again."""
    known = {
        f"{name}/{shard['name']}.{what}.npy": shard["sha256"][what]
        for name, entry in sources.items()
        for shard in entry["shards"]
        for what in ("tokens", "ends")
    }
    for name in lineage.list_files(out):
        if name.startswith(f"{WORK}/"):
            continue
        if name in known:
            yield name, {"bytes": (out / name).stat().st_size, "sha256": known[name]}
        else:
            yield name, vars(files.hash_file(out / name))
