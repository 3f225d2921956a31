"""The family of an artefact: its ancestors down to what has no parents, what was made from it, and which edges say something new."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moss_train.artifacts.lineage import FOREIGN, Lineage, Record, load
from moss_train.artifacts.lineage_places import Places
from moss_train.errors import CheckpointError

_CACHE_ENTRY = re.compile(r"([a-z]+-[0-9a-f]{8})[0-9a-f]{32}")


@dataclass
class Node:
    """An artefact, at hand or known by its id alone.

    Attributes:
        id: As recorded; of one whose record is damaged, as its child names it.
        name: Last parts of its path, or of the path it had.
        path: Where it is, or None.
        record: What it says of itself, or None.
        problem: Why there is no record, for one at hand that should have one.
        licence: Of one made elsewhere, as its child has read it.
    """

    id: str
    name: str
    path: Path | None = None
    record: Record | None = None
    problem: str | None = None
    licence: str | None = None

    @property
    def kind(self) -> str:
        """What it is."""
        if self.record is not None:
            return self.record.lineage.kind
        return "made elsewhere" if self.id.startswith(FOREIGN) else "not at hand"

    @property
    def lineage(self) -> Lineage:
        """What its record says, or nothing."""
        return self.record.lineage if self.record is not None else Lineage(self.kind, "")


@dataclass
class Graph:
    """Nodes by id, and edges from child to parent.

    Attributes:
        root: The artefact that was asked about.
        nodes: All of the family.
        parents: Id -> roles and ids of its parents, as recorded.
        made_from_it: Ids of what descends from the root.
    """

    root: Node
    nodes: dict[str, Node] = field(default_factory=dict)
    parents: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    made_from_it: list[str] = field(default_factory=list)

    def edges(self, identity: str) -> list[tuple[str, str]]:
        """Roles and ids of the parents, without what a source or the data state as well: an export names the model that its checkpoint
        began with, so that this is known without the checkpoint, but it need not be drawn twice."""
        direct = self.parents.get(identity, [])
        restated = {edge for role, parent in direct if role in ("source", "data") for edge in self.parents.get(parent, [])}
        return [edge for edge in direct if edge not in restated]

    def ancestors(self, identity: str) -> set[str]:
        """Ids of all ancestors, without itself."""
        found: set[str] = set()
        waiting = [identity]
        while waiting:
            for _, parent in self.parents.get(waiting.pop(), []):
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def runs(self, identity: str) -> Iterator[Node]:
        """The trainings that the weights went through, each once, latest first: of a rewritten artefact, the run that made its source."""
        seen: set[str] = set()
        waiting = [identity]
        while waiting:
            now = waiting.pop(0)
            if now in seen or now not in self.nodes:
                continue
            seen.add(now)
            roles = self.parents.get(now, [])
            sources = [parent for role, parent in roles if role in ("source", "model")]
            if self.nodes[now].lineage.flops or not sources:
                if self.nodes[now].lineage.tokens_seen:
                    yield self.nodes[now]
                # Its source is of the same run.
                seen.update(sources)
                waiting += [parent for source in sources for role, parent in self.parents.get(source, []) if role == "init"]
            else:
                waiting += sources
            waiting += [parent for role, parent in roles if role == "init"]

    def total_flops(self, identity: str) -> float:
        """FLOPs of all trainings behind an artefact, as far as their records are at hand."""
        return sum(node.lineage.flops for node in self.runs(identity))

    def total_tokens(self, identity: str) -> int:
        """Tokens of all trainings behind an artefact, as far as their records are at hand."""
        return sum(node.lineage.tokens_seen for node in self.runs(identity))


def family(artefact: Path, roots: Sequence[Path] = (), descendants: bool = True) -> Graph:
    """The graph around an artefact; nothing is verified, and no weights are read.

    Args:
        artefact: A directory or file, with a record or made elsewhere.
        roots: Where to look for its family; see `Places`.
        descendants: Whether what was made from it is looked for too.

    Raises:
        CheckpointError: The record of `artefact` is damaged.
    """
    if not artefact.exists():
        raise CheckpointError(f"{artefact}: no such file or directory")
    record = load(artefact)
    name = name_of(artefact)
    root = Node(record.id if record is not None else FOREIGN + "?", name, artefact, record)
    graph, places = Graph(root), Places(roots, reads=False)
    _add(graph, root, places)
    if descendants and record is not None:
        _add_descendants(graph, places)
    return graph


def name_of(artefact: Path) -> str:
    """What tells an artefact apart for a person: its name, with that of the run for the parts of one."""
    path = artefact.absolute()
    if short_name(path.name) != path.name:
        return short_name(path.name)
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}/{path.name}"
    return f"{path.parent.name}/{path.name}" if path.name.startswith("export") else path.name


def short_name(name: str) -> str:
    """The name of an entry of the data cache without most of its hash; any other as it is."""
    entry = _CACHE_ENTRY.fullmatch(name)
    return entry[1] if entry is not None else name


def _add(graph: Graph, node: Node, places: Places) -> None:
    """Adds a node and its ancestors."""
    waiting = [node]
    while waiting:
        child = waiting.pop(0)
        if child.id in graph.nodes:
            continue
        graph.nodes[child.id] = child
        graph.parents[child.id] = []
        if child.record is None or child.path is None:
            continue
        for parent in child.record.lineage.parents:
            graph.parents[child.id].append((parent.role, parent.id))
            if parent.id in graph.nodes:
                continue
            path = places.find(parent, child.path).path
            found = Node(parent.id, short_name(parent.name), path)
            if parent.id.startswith(FOREIGN):
                licences = child.record.lineage.licences.items()
                found.licence = next((licence for licence, names in licences if parent.name in names), None)
            if path is not None:
                found.name = name_of(path)
                try:
                    found.record = load(path) if not parent.id.startswith(FOREIGN) else None
                except CheckpointError as error:
                    found.problem = str(error)
            waiting.append(found)


def _add_descendants(graph: Graph, places: Places) -> None:
    """Adds what was made from the root, nearest first: what has it among its ancestors, wherever those between are."""
    root = graph.root
    everything, candidates = Graph(root), []
    for path in places.index(root.path or Path()).values():
        try:
            record = load(path)
        except CheckpointError:
            continue
        if record is not None and record.id not in graph.nodes:
            candidates.append(record.id)
            _add(everything, Node(record.id, name_of(path), path, record), places)
            # As the roots were given, also where it was met before as a parent.
            everything.nodes[record.id].path = path
    ancestors = {name: everything.ancestors(name) for name in candidates}
    below = [name for name, found in ancestors.items() if root.id in found]
    graph.made_from_it = sorted(below, key=lambda name: (len(ancestors[name]), everything.nodes[name].name))
    for name in graph.made_from_it:
        _add(graph, everything.nodes[name], places)


def descendants(artefact: Path, roots: Sequence[Path] = ()) -> list[Node]:
    """What descends from an artefact below the roots, nearest first."""
    graph = family(artefact, roots)
    return [graph.nodes[identity] for identity in graph.made_from_it]
