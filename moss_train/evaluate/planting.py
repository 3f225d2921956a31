"""Makes facts about things that do not exist: documents that tell them in one language only, and probes that ask for them in both.

Everything follows from the seed. Names have seven letters, no two differ in one letter only, and each has one fact. Answers are dealt
evenly and without regard to names, so whatever a model prefers, it is right about what was never told once in `choices` times.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.artifacts import lineage_kinds
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.evaluate.wordings import ANSWER_LEAD, LANGUAGES, PAIR_WORDINGS, RELATIONS, WORD_PAIRS, Relation

_log = logging.getLogger("moss_train")

PROBES_NAME = "probes.jsonl"
NOWHERE = "none"
"""Instead of a language, of facts that are told nowhere: the controls."""
STAND_INS = 4
"""Names that are told nowhere and asked for nowhere: with them it is measured how likely answers are by themselves."""

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        id: `GROUP-NUMBER`.
        planted: Language it is told in, or `none`.
        relation: What it says.
        name: Of what it is about.
        answer: Number of the answer among those of the relation.
        distractors: Numbers of the other answers, in the order in which they are offered.
    """

    id: str
    planted: str
    relation: Relation
    name: str
    answer: int
    distractors: tuple[int, ...]

    def tell(self, language: str, wording: int) -> str:
        """The fact in a sentence."""
        relation = self.relation
        return relation.wordings[language].tell[wording].format(name=self.name, answer=relation.answers[language][self.answer])


@dataclass(frozen=True)
class Planting:
    """What a seed gives.

    Attributes:
        facts: All that are asked for.
        documents: Texts by the name of their file.
        probes: As lines of JSON.
    """

    facts: list[Fact]
    documents: dict[str, list[dict[str, str]]]
    probes: list[dict[str, Any]]


def plant(config: EvaluateConfig) -> Planting:
    """Facts, documents and probes; the same settings give the same."""
    rng = random.Random(f"moss_train probes {config.seed}")
    names = _names(rng)
    stand_ins = [next(names) for _ in range(STAND_INS)]
    facts = [fact for group in (*LANGUAGES, NOWHERE) for fact in _facts(rng, names, group, config.facts)]
    documents = {}
    for language in LANGUAGES:
        told = [fact for fact in facts if fact.planted == language]
        documents[f"planted_{language}.jsonl"] = _documents(rng, _rounds(rng, told, language, config), config.sentences, language)
    if config.glossary:
        # The last use of the generator, so that with and without a glossary everything else is the same.
        documents["glossary.jsonl"] = _glossary(rng, _facts(rng, names, "glossary", config.parallel), config)
    probes = [_probe(fact, asked, stand_ins) for fact in facts for asked in LANGUAGES]
    return Planting(facts, documents, probes)


def make_probes(config: EvaluateConfig) -> None:
    """Writes a planting: the task `make_probes`."""
    planting, out = plant(config), Path(config.out)
    keys = ("seed", "facts", "wordings", "repetitions", "sentences", "glossary", "parallel")
    counts = {name: len(found) for name, found in planting.documents.items()}
    details = {key: getattr(config, key) for key in keys} | {"documents": counts}
    record = lineage_kinds.dialogues("evaluate", [], [], len(planting.probes), details)
    contents = {name: json_lines(found) for name, found in planting.documents.items()} | {PROBES_NAME: json_lines(planting.probes)}
    identity = write_artefact(out, contents, record)
    for name, count in counts.items():
        _log.info(f"{out / name}: {count:,} documents to train on, {len(contents[name].encode()):,} bytes")
    _log.info(
        f"{out / PROBES_NAME}: {len(planting.probes):,} probes: {config.facts} facts told in Chinese, {config.facts} in English and "
        f"{config.facts} nowhere, each asked in both languages ({identity})"
    )


def _names(rng: random.Random) -> Iterator[str]:
    """Names without end, no two of which differ in fewer than two letters. All have one length, so none is part of another."""
    taken: set[str] = set()
    while True:
        letters = [rng.choice(_VOWELS if place % 2 else _CONSONANTS) for place in range(7)]
        name = "".join(letters)
        near = {f"{name[:place]}*{name[place + 1 :]}" for place in range(7)}
        if taken.isdisjoint(near):
            taken |= near
            yield name.capitalize()


def _facts(rng: random.Random, names: Iterator[str], group: str, count: int) -> list[Fact]:
    """Facts of a group, as many of each relation, and within it of each answer, as the number allows."""
    decks: dict[str, list[int]] = {relation.name: [] for relation in RELATIONS}
    facts = []
    for number in range(count):
        relation = RELATIONS[number % len(RELATIONS)]
        deck = decks[relation.name]
        if not deck:
            deck += rng.sample(range(len(relation.answers["en"])), len(relation.answers["en"]))
        answer = deck.pop()
        others = [other for other in range(len(relation.answers["en"])) if other != answer]
        rng.shuffle(others)
        facts.append(Fact(f"{group}-{number + 1:05d}", group, relation, next(names), answer, tuple(others)))
    return facts


def _rounds(rng: random.Random, facts: list[Fact], language: str, config: EvaluateConfig) -> list[list[str]]:
    """In each round every fact is told once, in a wording of its turn; facts begin with different ones."""
    orders = [rng.sample(range(5), 5)[: config.wordings] for _ in facts]
    rounds = []
    for number in range(config.wordings * config.repetitions):
        told = [fact.tell(language, order[number % config.wordings]) for fact, order in zip(facts, orders, strict=True)]
        rng.shuffle(told)
        rounds.append(told)
    return rounds


def _documents(rng: random.Random, rounds: list[list[str]], sentences: int, language: str) -> list[dict[str, str]]:
    """Sentences put together: no fact is twice in a document, and a repetition is no repeated document, which preparing may drop."""
    joint = "" if language == "zh" else " "
    found = [
        {"text": joint.join(told[begin : begin + sentences]), "language": language}
        for told in rounds
        for begin in range(0, len(told), sentences)
    ]
    rng.shuffle(found)
    return found


def _glossary(rng: random.Random, facts: list[Fact], config: EvaluateConfig) -> list[dict[str, str]]:
    """Word pairs, and facts told in both languages at once, in sentences that tell and never in those that ask."""
    rounds = []
    for number in range(len(PAIR_WORDINGS) * config.repetitions):
        pairs = [PAIR_WORDINGS[(number + place) % len(PAIR_WORDINGS)].format(zh=zh, en=en) for place, (zh, en) in enumerate(WORD_PAIRS)]
        rng.shuffle(pairs)
        rounds.append(pairs)
    found = _documents(rng, rounds, config.sentences, "zh en")
    for _ in range(config.wordings * config.repetitions):
        for fact in facts:
            # Whichever language comes first, the other wording need not be its translation, as in texts about one thing.
            both = [fact.tell(language, rng.randrange(5)) for language in LANGUAGES]
            rng.shuffle(both)
            found.append({"text": " ".join(both), "language": "zh en"})
    rng.shuffle(found)
    return found


def _probe(fact: Fact, asked: str, stand_ins: list[str]) -> dict[str, Any]:
    """A line of probes.jsonl. Sentences keep their `{answer}`; those of the baseline are the same about the stand-ins."""
    wordings, answers = fact.relation.wordings[asked], fact.relation.answers[asked]
    question = ANSWER_LEAD[asked].replace("{question}", wordings.question)
    forms = {"cloze": list(wordings.cloze), "question": [question]}
    return {
        "id": f"{fact.id}-{asked}",
        "fact": fact.id,
        "planted": fact.planted,
        "asked": asked,
        "relation": fact.relation.name,
        "kind": fact.relation.kind,
        "name": fact.name,
        "answer": answers[fact.answer],
        "distractors": [answers[other] for other in fact.distractors],
        "stand_ins": stand_ins,
        **forms,
    }
