"""Which preference models gave a model its levels, as its lineage tells: none of them can judge whether it obeys."""

from __future__ import annotations

from pathlib import Path

from moss_train.artifacts import lineage
from moss_train.artifacts.lineage_graph import Graph, family
from moss_train.errors import UsageError

_DATA = ("data", "rendered")
"""Kinds of artefacts that are taggers by their role and no models: the record of a tagging."""


def taggers_of(model: Path) -> list[str]:
    """Ids of the preference models that gave the levels of a model's training data, of all rounds; those of their checkpoints too.

    Args:
        model: Directory. Of its ancestors as many are asked as are at hand.

    Raises:
        CheckpointError: Its record is damaged, or it is not there.
    """
    graph = family(model, descendants=False)
    found: set[str] = set()
    for node in graph.nodes.values():
        found.update(map(str, node.lineage.details.get("preference_model") or ()))
    for parents in graph.parents.values():
        found.update(parent for role, parent in parents if role == "tagger" and graph.nodes[parent].kind not in _DATA)
    return sorted({one for tagger in found for one in _forms(graph, tagger)})


def refuse_tagger(judge: Path, taggers: list[str], key: str, why: str) -> None:
    """Refuses a preference model that is one of some, or was written from the same checkpoint.

    Args:
        judge: Directory. taggers: Ids. key: The setting that names it. why: What the others did.

    Raises:
        UsageError: It is.
    """
    forms = forms_of(judge)
    same = sorted(forms & set(taggers))
    if same:
        raise UsageError(
            f"{key}={judge} is the preference model that {why} ({same[0][:19]}): it would find what it has asked for. "
            "Expected another one, of other comparisons or another seed"
        )


def forms_of(preference_model: Path) -> set[str]:
    """The ids of a preference model, and of the checkpoint and exports that it was written from."""
    graph = family(preference_model, descendants=False)
    if graph.root.record is None:
        # Made elsewhere: known by its files alone.
        return {lineage.foreign_id(preference_model)}
    return _forms(graph, graph.root.id)


def _forms(graph: Graph, identity: str) -> set[str]:
    """An id, and those of the artefacts that have the same weights in another form."""
    found, waiting = {identity}, [identity]
    while waiting:
        new = {parent for role, parent in graph.parents.get(waiting.pop(), []) if role == "source"} - found
        found |= new
        waiting += new
    return found
