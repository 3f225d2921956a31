"""The job behind `scripts/tag.py`: rewards become levels, and responses dialogues that carry them.

OUT                 a dialogue for every response (or every dialogue that was scored), in the published layout, with `level` at the turns
OUT.tagging.json    what the levels are: the preference model, the scale, counts. It is never changed, and another round can take it
*.lineage.json      of both; the tagging record is a parent of the dialogues, in the role `tagger`
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds, lineage_verify
from moss_train.data.comparisons import parse_responses
from moss_train.data.dialogue import BY_MOSS, Dialogue
from moss_train.data.formats import parse
from moss_train.data.formats.fields import kind_of
from moss_train.data.formats.moss003 import parse_moss003, write_moss003
from moss_train.data.paths import TAGGING_SUFFIX
from moss_train.data.records import RecordError, read_all
from moss_train.data.sources import source_of
from moss_train.errors import DataError, DiskFullError, UsageError
from moss_train.pm.levels import Scale, levels_of, make_scale
from moss_train.pm.tag_config import TagConfig

_log = logging.getLogger("moss_train")
VERSION = 1


@dataclass(frozen=True)
class Group:
    """What one line holds.

    Attributes:
        dialogues: One for each response; of a scored dialogue itself.
        rewards: One for each response, or for each turn of the dialogue; None: none, or it is left out.
        names: Why those without a reward have none.
    """

    dialogues: tuple[Dialogue, ...]
    rewards: tuple[float | None, ...]
    names: tuple[str, ...]
    is_dialogue: bool

    @property
    def by_context(self) -> list[tuple[float | None, ...]]:
        """The rewards, those of responses to one context together; every turn of a dialogue has a context of its own."""
        return [(reward,) for reward in self.rewards] if self.is_dialogue else [self.rewards]

    def levels(self, scale: Scale) -> list[int | None]:
        """A level for each reward."""
        return [level for rewards in self.by_context for level in levels_of(scale, rewards)]


def main(config: TagConfig) -> None:
    """Tags.

    Raises:
        UsageError: `out` exists, or a record of an earlier tagging cannot be used: it is none, or other preference models gave its rewards.
        CheckpointError: A record of an earlier tagging was changed since.
        DataError: The scored file cannot be read, or its rewards make no levels.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = Path(config.out)
    record_path = out.with_name(out.name + TAGGING_SUFFIX)
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists; name another file in out, or remove it")
    groups = read_all(
        config.scored, "scored", lambda _, record: read_group(record.value, record.origin, config.unfinished), "Score them again."
    )
    source, parents = source_of(config.scored, len(groups), "source")
    models = _preference_models(parents)
    frozen = None if config.frozen is None else read_tagging(Path(config.frozen), "frozen", models)
    previous = None if config.previous is None else read_tagging(Path(config.previous), "previous", models)
    pool = [rewards for group in groups for rewards in group.by_context]
    try:
        scale = (
            frozen.scale
            if frozen is not None
            else make_scale(pool, config.by, config.levels, config.thresholds, config.within, config.abstain)
        )
    except DataError as error:
        raise DataError(f"scored={config.scored}: {error}") from error
    tagged = [group.levels(scale) for group in groups]
    counts = _counts(scale, groups, tagged)
    report: dict[str, Any] = {
        "version": VERSION,
        "preference_model": models,
        "scale": scale.to_json(),
        "frozen_from": None if config.frozen is None else files.hash_file(Path(config.frozen)).sha256,
        "frozen_counts": None if frozen is None else frozen.counts,
        "responses_per_context": dict(sorted(Counter(str(len(rewards)) for rewards in pool).items())),
        "counts": counts,
        "changed": None if previous is None else changed(previous.scale, groups, tagged),
    }
    content = (json.dumps(report, indent=1) + "\n").encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # The same content is what a run left that was killed before the dialogues were there; another may be what a later round needs.
        if record_path.exists() and record_path.read_bytes() != content:
            raise UsageError(f"{record_path} exists and says something else; name another file in out, or remove it")
        files.replace_content(record_path, content)
        earlier = dict.fromkeys(Path(path) for path in (config.frozen, config.previous) if path is not None)
        more = [parent for path in earlier for parent in lineage.recorded_parent(path, "source")]
        # What decides about levels is in the scale, which another tagging may have made.
        settings = {name: value for name, value in asdict(config).items() if name in ("scored", "out", "frozen", "previous", "unfinished")}
        lineage.write(record_path, lineage_kinds.dialogues("tag", [*parents, *more], [source], len(groups), report))
        dialogues = [one for group, levels in zip(groups, tagged, strict=True) for one in tagged_dialogues(group, levels)]
        lines = ((json.dumps(write_moss003(one), ensure_ascii=False) + "\n").encode(errors="replace") for one in dialogues)
        taggers = [lineage.parent_of(record_path, "tagger"), *parents]
        record = lineage_kinds.dialogues("tag", taggers, [source], len(dialogues), {"settings": settings, **report})
        lineage.write_lines(out, lines, record)
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent}; free some, and tag again") from error
        raise UsageError(f"out={out} cannot be written: {error.strerror or error}") from error
    told = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    _log.info(f"{len(groups):,} lines: {told} -> {out}")
    if frozen is not None:
        _log.info(f"by the levels of {config.frozen}: {moved(frozen.counts, counts)}")
    if report["changed"] is not None:
        _log.info(f"{report['changed']['changed']:,} of {report['changed']['compared']:,} have another level than by {config.previous}")


def read_group(value: Any, origin: str, unfinished: bool = False) -> Group:
    """A line of `scripts/score.py`.

    Raises:
        RecordError: It is none: `not_scored`, or what is wrong with its layout.
    """
    if isinstance(value, dict) and "rewards" in value:
        dialogue = parse(value.get("dialogue"), origin, open_end=True)
        rewards = value["rewards"]
        if not isinstance(rewards, list) or len(rewards) != len(dialogue.turns):
            raise RecordError(origin, "not_scored", f"{len(dialogue.turns)} turns, but rewards is {kind_of(rewards)}.")
        found = tuple(_reward(one, origin) for one in rewards)
        return Group((dialogue,), found, tuple("no_reward" for _ in found), True)
    parsed = parse_responses(value, origin)
    raw = parsed.record["responses"]
    if not all("reward" in one for one in raw):
        raise RecordError(origin, "not_scored", 'a response has no "reward"; expected lines as scripts/score.py writes them.')
    context = parsed.context
    # Earlier replies are what the response is about, not what was rewarded.
    before = tuple(replace(turn, untrained=BY_MOSS) for turn in context.turns[:-1])
    dialogues = tuple(
        Dialogue(f"{context.id}-{number}", context.meta_instruction, (*before, turn), context.category, origin)
        for number, turn in enumerate(parsed.responses, 1)
    )
    given = [_reward(one["reward"], origin) for one in raw]
    names = [
        "unfinished" if not unfinished and one.get("finish") == "length" else "no_reward" if reward is None else _unwritable(dialogue)
        for one, reward, dialogue in zip(raw, given, dialogues)
    ]
    rewards = tuple(None if name else reward for reward, name in zip(given, names))
    return Group(dialogues, rewards, tuple(name or "" for name in names), False)


def _unwritable(dialogue: Dialogue) -> str | None:
    """Why a dialogue cannot be written so that training reads it, such as a reply that ends by spelling its control token; None: it can."""
    try:
        parse_moss003(write_moss003(dialogue), dialogue.origin)
    except RecordError as error:
        return error.code
    return None


def _reward(value: Any, origin: str) -> float | None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf")
    ):
        raise RecordError(origin, "not_scored", f"a reward is {kind_of(value)}; expected a number or null.")
    return None if value is None else float(value)


def tagged_dialogues(group: Group, levels: list[int | None]) -> Iterator[Dialogue]:
    """The dialogues of a line with their levels. A response without a reward is left out, and so is a last turn without a reply; a reply
    near a threshold has no level."""
    if group.is_dialogue:
        (dialogue,) = group.dialogues
        turns = tuple(replace(turn, level=level) for turn, level in zip(dialogue.turns, levels, strict=True))
        # A dialogue that was scored may end with a question, and that one alone.
        answered = turns if turns[-1].moss is not None else turns[:-1]
        if answered:
            yield replace(dialogue, turns=answered)
        return
    for dialogue, level, reward in zip(group.dialogues, levels, group.rewards, strict=True):
        if reward is not None:
            yield replace(dialogue, turns=(*dialogue.turns[:-1], replace(dialogue.turns[-1], level=level)))


def changed(previous: Scale, groups: list[Group], tagged: list[list[int | None]]) -> dict[str, int]:
    """How many responses have another level than by an earlier scale."""
    pairs = [pair for group, new in zip(groups, tagged, strict=True) for pair in zip(group.levels(previous), new, strict=True)]
    compared = [(old, new) for old, new in pairs if not (old is None and new is None)]
    return {"compared": len(compared), "changed": sum(old != new for old, new in compared)}


def moved(before: dict[str, int], after: dict[str, int]) -> str:
    """What share of the replies with a level has each one, in an earlier round and in this one, by the same scale."""
    names = [name for name in after if name.startswith("level_")]

    def shares(counts: dict[str, int]) -> list[float]:
        total = sum(counts.get(name, 0) for name in names)
        return [counts.get(name, 0) / total if total else 0.0 for name in names]

    old, new = shares(before), shares(after)
    mean = [sum(level * share for level, share in enumerate(one, 1)) for one in (old, new)]
    told = ", ".join(f"{name} {was:.1%} -> {now:.1%}" for name, was, now in zip(names, old, new))
    return f"{told}; mean level {mean[0]:.2f} -> {mean[1]:.2f}"


@dataclass(frozen=True)
class Tagging:
    """An earlier tagging.

    Attributes:
        scale: What its levels are.
        counts: Replies by level, `level_1` first, and those without one by why.
    """

    scale: Scale
    counts: dict[str, int]


def read_tagging(path: Path, option: str, preference_models: list[str]) -> Tagging:
    """The record of an earlier tagging.

    Args:
        path: OUT.tagging.json.
        option: The setting that names it, for messages.
        preference_models: Ids of those that gave the rewards of this round; none where their records are lost.

    Raises:
        UsageError: It is none, or other preference models gave its rewards.
        CheckpointError: It is not what its own record says.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = Tagging(Scale.from_json(report["scale"]), {name: int(number) for name, number in report["counts"].items()})
        theirs = [str(one) for one in report["preference_model"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise UsageError(
            f"{option}={path} is no record of a tagging ({error}); name an OUT{TAGGING_SUFFIX} that scripts/tag.py wrote"
        ) from error
    lineage_verify.require(path, option, f"remove {lineage.record_path(path)}", _log.debug)
    # Only differences of rewards mean anything (see `model.pm`), so those of another model cannot be held against the same thresholds.
    if theirs and preference_models and theirs != preference_models:
        raise UsageError(
            f"{option}={path} was made of rewards by {_named(theirs)}, and those of this round are by {_named(preference_models)}: rewards "
            f"of different preference models have no common zero. Score with that one, or make a new scale: leave out {option}"
        )
    return found


def _named(ids: list[str]) -> str:
    return f"the preference model {' and '.join(map(lineage_verify.short, ids))}"


def _counts(scale: Scale, groups: list[Group], tagged: list[list[int | None]]) -> dict[str, int]:
    levels = Counter(level for found in tagged for level in found if level is not None)
    counts = {f"level_{level}": levels[level] for level in range(1, scale.levels + 1)}
    rest: Counter[str] = Counter()
    for group, found in zip(groups, tagged, strict=True):
        for level, reward, name in zip(found, group.rewards, group.names, strict=True):
            if level is None:
                rest["near_a_threshold" if reward is not None else name] += 1
    return counts | dict(sorted(rest.items()))


def _preference_models(parents: list[lineage.Parent]) -> list[str]:
    """Ids of the preference models that gave the rewards, as the records of the scored files tell."""
    found = []
    for parent in parents:
        record = lineage.read(Path(parent.path)) if parent.path else None
        found += [one["id"] for one in (record or {}).get("parents", []) if one["role"] == "tagger"]
    return sorted(set(found))
