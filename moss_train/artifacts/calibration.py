"""The texts that a model is quantised by, and those that the result is compared on: of what the model was trained for.

By default both come from the training data that the model's lineage names, as it was rendered then, found by its id, so it is exactly that.
What is given by path is rendered by this project's renderer with the model's tokenizer. Which documents are taken follows from their number
alone: evenly spaced, each source the same number, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_train.artifacts import lineage
from moss_train.artifacts.config import LEAST_TOKENS, QuantizeConfig, as_paths
from moss_train.artifacts.lineage_places import Places
from moss_train.data.comparison_render import render_comparisons
from moss_train.data.comparison_rows import Store
from moss_train.data.corpus import FILE_NAME as CORPUS_NAME
from moss_train.data.corpus import CorpusSource, open_corpus
from moss_train.data.documents import StoredDocuments
from moss_train.data.formats import parse
from moss_train.data.formats.preference import parse_preference, without_ties
from moss_train.data.paths import form_of, split_limit
from moss_train.data.records import RecordError, read_records
from moss_train.data.render import render_all
from moss_train.data.sources import source_of
from moss_train.data.texts import find_text_files, read_texts, text_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

_MOST_READ = 200_000
"""Records of a file that are looked at: enough to choose from."""
_MOST_ANCESTORS = 32
_PM_TIMES = 4
_TEXT_FIELDS = ("text", "content")


@dataclass
class Pool:
    """Documents to choose from.

    Attributes:
        name: For people. count: How many there are. read: Ids of one by its number, uncut. source: For the record. parent: Its artefact.
        shared: Documents that stand together, such as responses to one context: a choice takes so many neighbours.
    """

    name: str
    count: int
    read: Callable[[int], Sequence[int]]
    source: lineage.Source
    parents: list[lineage.Parent] = field(default_factory=list)
    neighbours: int = 1


@dataclass
class Texts:
    """Rows of ids, and where they come from.

    Attributes:
        calibration: To quantise by. heldout: To compare on; none of them is among the others.
        sources: Of both, with their roles. parents: Artefacts that they are part of.
    """

    calibration: list[list[int]]
    heldout: list[list[int]]
    sources: list[lineage.Source]
    parents: list[lineage.Parent]

    def describe(self, rows: list[list[int]]) -> dict[str, Any]:
        """Count, tokens, and a hash over the ids in their order."""
        return {"samples": len(rows), "tokens": sum(map(len, rows)), "sha256": lineage.hash_value(rows)}


def gather(config: QuantizeConfig, source: Path, tokenizer: MossTokenizer, positions: int, is_pm: bool) -> Texts:
    """The texts for a model.

    Args:
        config: Of the job. source: The model.
        tokenizer: Its own. positions: It covers.
        is_pm: Whether it is a preference model, whose documents end with the token that a reward is read at.

    Raises:
        DataError: There are none, or too few.
    """
    # Rows that are compared end where a reward is read, so they are never cut.
    limit, short = min(config.seq_len, positions), min(positions if is_pm else config.heldout_seq_len, positions)
    # A reward is one number where a language model has one for each token.
    compared = config.heldout_samples * (_PM_TIMES if is_pm else 1)
    train, valid = _recorded_pools(source, tokenizer)
    record = lineage.load(source)
    # As in training: what stands before a dialogue that says nothing of it.
    meta = record.lineage.details.get("meta_instruction") if record is not None else None
    if config.data is not None:
        train = [_open_path(spec, tokenizer, limit, is_pm, "calibration", meta) for spec in as_paths(config.data)]
    if config.heldout is not None:
        valid = [_open_path(spec, tokenizer, positions, is_pm, "heldout", meta) for spec in as_paths(config.heldout)]
    elif config.data is not None:
        valid = []
    if not train:
        raise DataError(
            f"model={source}: none of the training data that its lineage names is still there, so there is nothing to calibrate on; give "
            "data=PATH: dialogues, comparisons, texts or a prepared corpus like those it was trained on"
        )
    if valid:
        heldout = list(_choose(valid, compared, short, keep_whole=is_pm))
        calibration = list(_choose(train, config.samples, limit))
    else:
        both = list(_choose(train, config.samples + compared, limit))
        step = max(2, len(both) // compared)
        # Neighbours stay together: a preference model is compared on responses to one context.
        apart = {number for number in range(len(both)) if number // 2 % step == step - 1} if step < len(both) else set()
        heldout = [both[number][: len(both[number]) if is_pm else short] for number in sorted(apart)]
        calibration = [row for number, row in enumerate(both) if number not in apart]
    known = set(map(tuple, calibration))
    heldout = [row for row in heldout if tuple(row) not in known]
    if not calibration or len(heldout) < 2:
        raise DataError(
            f"{', '.join(pool.name for pool in train)}: {len(calibration)} documents of {LEAST_TOKENS} tokens or more to calibrate on and "
            f"{len(heldout)} to compare on; expected at least 1 and 2: give more data, or heldout=PATH"
        )
    pools = [*((pool, "calibration") for pool in train), *((pool, "heldout") for pool in valid)]
    sources = [lineage.Source(p.source.name, p.source.sha256, p.source.records, role, p.source.licence) for p, role in pools]
    parents = {parent.id: parent for pool, _ in pools for parent in pool.parents}
    return Texts(calibration, heldout, sources, list(parents.values()))


def _choose(pools: Sequence[Pool], count: int, limit: int, keep_whole: bool = False) -> Iterator[list[int]]:
    """Rows of up to `limit` ids, evenly from each pool, the pools in turn; with `keep_whole` longer ones are left out instead of cut."""
    share = -(-count // len(pools))
    chosen = [_numbers(pool, share) for pool in pools]
    left = count
    for turn in range(max(map(len, chosen))):
        for pool, numbers in zip(pools, chosen):
            if turn >= len(numbers) or left == 0:
                continue
            ids = [int(one) for one in pool.read(numbers[turn])]
            if len(ids) < LEAST_TOKENS or (keep_whole and len(ids) > limit):
                continue
            left -= 1
            yield ids[:limit]


def _numbers(pool: Pool, count: int) -> list[int]:
    """So many numbers of documents, evenly spaced, with their neighbours."""
    if count >= pool.count:
        return list(range(pool.count))
    together = min(pool.neighbours, count)
    starts = [number * pool.count // -(-count // together) for number in range(-(-count // together))]
    numbers = (start + inside for start in starts for inside in range(together))
    return list(dict.fromkeys(number for number in numbers if number < pool.count))[:count]


# ---------------------------------------------------------------------- what the lineage names


def _recorded_pools(source: Path, tokenizer: MossTokenizer) -> tuple[list[Pool], list[Pool]]:
    """Rendered data and corpora that a model was trained and validated on, as far as they are at hand."""
    places = Places(reads=False)
    pools: dict[str, list[Pool]] = {"train": [], "valid": []}
    waiting: list[Path] = [source]
    seen: set[Path] = set()
    while waiting and len(seen) < _MOST_ANCESTORS:
        artefact = waiting.pop(0)
        record = lineage.load(artefact)
        seen.add(artefact)
        if record is None:
            continue
        data = [parent for parent in record.lineage.parents if parent.role == "data"]
        for parent in data:
            place = places.find(parent, artefact).path
            for role, pool in _open_recorded(place, parent, tokenizer) if place is not None else []:
                pools[role].append(pool)
        if not data:
            # One that was rewritten names the data only through what it was made from.
            found = [places.find(parent, artefact).path for parent in record.lineage.parents if parent.role == "source"]
            waiting += [place for place in found if place is not None and place not in seen]
    return pools["train"], pools["valid"]


def _open_recorded(place: Path, parent: lineage.Parent, tokenizer: MossTokenizer) -> Iterator[tuple[str, Pool]]:
    """(role, documents) of rendered data, or of each source of a corpus; nothing where it was made with another tokenizer."""
    record = lineage.load(place)
    if record is None:
        return
    made = record.lineage
    if made.kind == "shards":
        corpus = open_corpus(place)
        if corpus.tokenizer_fingerprint == tokenizer.fingerprint:
            for part in corpus.sources.values():
                # What was held out of a corpus for validation is held out again by number alone; roles are of whole corpora.
                yield "train", _corpus_pool(part, [parent])
        return
    if made.kind != "rendered" or made.details.get("tokenizer_fingerprint") != tokenizer.fingerprint or not made.data:
        return
    role, one = made.data[0].role, made.data[0]
    if role not in ("train", "valid"):
        return
    if (place / "digest").is_file():
        yield role, _comparisons_pool(Store(place), one, [parent])
    else:
        documents = StoredDocuments(place, [])
        yield role, Pool(one.name, len(documents.lengths), lambda number: documents.read(number)[0].tolist(), one, [parent])


def _comparisons_pool(store: Store, source: lineage.Source, parents: list[lineage.Parent]) -> Pool:
    def read(number: int) -> Sequence[int]:
        comparison = int(store.first_response.searchsorted(number, side="right")) - 1
        ids: Sequence[int] = store.read(comparison).documents[number - int(store.first_response[comparison])].tolist()
        return ids

    return Pool(source.name, len(store.lengths), read, source, parents, neighbours=2)


def _corpus_pool(one: CorpusSource, parents: list[lineage.Parent]) -> Pool:
    def read(number: int) -> Sequence[int]:
        for shard in one.shards:
            if number < shard.documents:
                ids: Sequence[int] = shard.document(number).tolist()
                return ids
            number -= shard.documents
        raise IndexError(number)

    source = lineage.Source(one.name, one.fingerprint, one.documents, "train", one.licence)
    return Pool(one.name, one.documents, read, source, parents)


# ---------------------------------------------------------------------- what is given by path


def _open_path(spec: str, tokenizer: MossTokenizer, limit: int, is_pm: bool, role: str, meta: str | None) -> Pool:
    """Documents of a path: a prepared corpus, records of any format, or plain texts.

    Raises:
        DataError: Nothing can be read from it, or it was prepared with another tokenizer.
    """
    if (Path(spec) / CORPUS_NAME).is_file():
        corpus = open_corpus(Path(spec), tokenizer.fingerprint)
        pools = [_corpus_pool(one, lineage.recorded_parent(Path(spec), "data")) for one in corpus.sources.values()]
        chosen = [(pool, number) for pool in pools for number in _numbers(pool, _MOST_READ // len(pools))]
        source = lineage.Source(Path(spec).name, lineage.hash_value([p.source.sha256 for p in pools]), len(chosen), role, None)
        return Pool(spec, len(chosen), lambda at: chosen[at][0].read(chosen[at][1]), source, pools[0].parents)
    pattern, most = split_limit(spec)
    rows = _render(spec, tokenizer, limit, is_pm, min(most or _MOST_READ, _MOST_READ), meta)
    if all(form_of(path) is None for path in find_text_files(pattern)):
        digest = lineage.hash_value([lineage.hash_files(path) for path in find_text_files(pattern)])
        return Pool(spec, len(rows), rows.__getitem__, lineage.Source(Path(pattern).name, digest, len(rows), role, None))
    source, parents = source_of(spec, len(rows), role)
    parents = [lineage.Parent("data", one.id, one.name, one.path) for one in parents]
    return Pool(spec, len(rows), rows.__getitem__, source, parents, neighbours=2 if is_pm else 1)


def _render(spec: str, tokenizer: MossTokenizer, limit: int, is_pm: bool, most: int, meta: str | None) -> list[list[int]]:
    """Each record as ids, of any length: as training would have them, but that a plain text is one document."""
    pattern, _ = split_limit(spec)
    if all(form_of(path) is None for path in find_text_files(pattern)):
        texts = [text for (_, text), _ in zip(read_texts(spec), range(most))]
        return [_encode_text(text, tokenizer) for text in texts]
    values = [(record.value, record.origin) for record, _ in zip(read_records(spec), range(most))]
    if is_pm:
        try:
            comparisons = [without_ties(parse_preference(value, origin, default_meta=meta)) for value, origin in values]
        except RecordError:
            comparisons = []
        if comparisons:
            rendered = render_comparisons(iter(comparisons), tokenizer, limit, lambda error: None)
            return [document for one in rendered for document in one.documents]
    try:
        dialogues = [parse(value, origin, default_meta=meta) for value, origin in values]
    except RecordError as error:
        if is_pm or not all(
            isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _TEXT_FIELDS) for value, _ in values
        ):
            raise DataError(f"{spec}: neither dialogues, comparisons nor texts: {error}") from error
        key = next(key for key in _TEXT_FIELDS if isinstance(values[0][0].get(key), str))
        return [_encode_text(text_of(value, origin, key), tokenizer) for value, origin in values]
    rendered_all, _ = render_all(dialogues, tokenizer)
    if not is_pm:
        return [one.input_ids for one in rendered_all]
    return [one.input_ids[: one.segments[-1].content_end + 1] for one in rendered_all]


def _encode_text(text: str, tokenizer: MossTokenizer) -> list[int]:
    return [*tokenizer.encode(text), tokenizer.endoftext]
