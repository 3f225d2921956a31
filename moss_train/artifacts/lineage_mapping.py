"""A record in the words of others: Hugging Face's model tree, an in-toto statement, artifacts of Weights & Biases."""

from __future__ import annotations

from typing import Any

from moss_train.artifacts.lineage import FOREIGN, UNKNOWN_LICENCE, Lineage, Parent, Record, licences_of

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


def huggingface(lineage: Lineage) -> dict[str, Any]:
    """Front matter of a model card: `base_model`, `base_model_relation`, `license`, `datasets`, as far as they are known.

    A base model is named as it was called here; a card that is published wants the name of its repository there. Weights that were only
    rewritten are of the same model, so an export's base is what its training began with, and not its checkpoint.
    """
    found: dict[str, Any] = {}
    inherited = lineage.licences or licences_of(lineage)
    by_role: dict[str, list[Parent]] = {}
    for parent in lineage.parents:
        by_role.setdefault(parent.role, []).append(parent)
    if lineage.kind == "variant":
        bases, relation = by_role.get("source", []), "quantized"
    else:
        bases = by_role.get("init", [])
        relation = "merge" if len(bases) > 1 else "finetune"
    if bases:
        names = [parent.name for parent in bases]
        found |= {"base_model": names[0] if len(names) == 1 else names, "base_model_relation": relation}
    licences = [licence for licence in inherited if licence != UNKNOWN_LICENCE]
    # With a source whose licence is not known, or several licences, no single word is true.
    if len(licences) == 1 and UNKNOWN_LICENCE not in inherited:
        found["license"] = licences[0].lower()
    elif licences:
        found |= {"license": "other", "license_name": " and ".join(inherited)}
    if names := sorted({source.name for source in lineage.data if source.role == "train"}):
        found["datasets"] = names
    return found


def in_toto(record: Record) -> dict[str, Any]:
    """An in-toto statement: its subjects are the files, its predicate has the shape of SLSA provenance. It is not signed."""
    lineage = record.lineage
    dependencies = [
        {"name": parent.name, "digest": _digest(parent.id), "annotations": {"role": parent.role, "id": parent.id}}
        for parent in lineage.parents
    ] + [
        {
            "name": source.name,
            "digest": {"sha256": source.sha256},
            "annotations": {"role": source.role, "records": source.records, "licence": source.licence or UNKNOWN_LICENCE},
        }
        for source in lineage.data
    ]
    commit = record.code.get("commit")
    if commit:
        annotations = {"modified": bool(record.code.get("modified"))}
        dependencies.append({"name": "moss_train", "digest": {"gitCommit": commit}, "annotations": annotations})
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": entry.sha256}} for name, entry in sorted(record.files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"pkg:pypi/moss-train#{lineage.kind}/{lineage.stage}",
                "externalParameters": lineage.config,
                "internalParameters": {"details": lineage.details, "environment": record.environment},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": "pkg:pypi/moss-train", "version": {"moss_train": str(record.code.get("moss_train", ""))}},
                "metadata": {"invocationId": record.id, "finishedOn": record.created},
            },
        },
    }


def _digest(identity: str) -> dict[str, str]:
    # Of the record, which holds the hash of every file; of a directory made elsewhere, over its files.
    return {"sha256": identity.removeprefix(FOREIGN).removeprefix("sha256:")}


def wandb_artifact(record: Record) -> dict[str, Any]:
    """What `wandb.Artifact` takes. The name follows from the id, so that one run's output and the next one's input are one artifact."""
    lineage = record.lineage
    return {
        "name": f"{lineage.kind}-{record.id.removeprefix('sha256:')[:16]}",
        "type": lineage.kind,
        "metadata": {
            "id": record.id,
            "stage": lineage.stage,
            "tokens_seen": lineage.tokens_seen,
            "flops": lineage.flops,
            "metrics": lineage.metrics,
            "licences": lineage.licences,
            "parents": [{"role": parent.role, "id": parent.id, "name": parent.name} for parent in lineage.parents],
        },
    }
