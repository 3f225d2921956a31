"""What is planted follows from the seed, is told in one language only, and is asked in other words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moss_train.data.texts import read_texts
from moss_train.errors import UsageError
from moss_train.evaluate.output import json_lines
from moss_train.evaluate.planting import make_probes, plant
from moss_train.evaluate.wordings import LANGUAGES, RELATIONS, Relation
from tests.planted import settings

CASES = [(relation, language) for relation in RELATIONS for language in LANGUAGES]


def test_a_seed_gives_one_planting_and_another_seed_another() -> None:
    assert plant(settings(seed=3)) == plant(settings(seed=3))
    first, second = plant(settings(seed=3)), plant(settings(seed=4))
    assert {fact.name for fact in first.facts}.isdisjoint(fact.name for fact in second.facts)


def test_a_glossary_changes_nothing_else() -> None:
    without, having = plant(settings()), plant(settings(glossary=True))
    assert having.documents.pop("glossary.jsonl")
    assert having == without


def test_nothing_is_told_but_in_its_language() -> None:
    planting = plant(settings(facts=90, glossary=True))
    whole = {name: "\n".join(document["text"] for document in found) for name, found in planting.documents.items()}
    for fact in planting.facts:
        for name, text in whole.items():
            assert (fact.name in text) == (name == f"planted_{fact.planted}.jsonl"), (fact, name)
    for stand_in in planting.probes[0]["stand_ins"]:
        assert not any(stand_in in text for text in whole.values())
        assert stand_in not in {fact.name for fact in planting.facts}


def test_what_is_asked_is_written_nowhere() -> None:
    planting = plant(settings(glossary=True))
    whole = "\n".join(document["text"] for found in planting.documents.values() for document in found)
    for probe in planting.probes:
        for sentence in (*probe["cloze"], *probe["question"]):
            begin = sentence.partition("{answer}")[0].replace("{name}", probe["name"])
            assert begin not in whole


@pytest.mark.parametrize(("wordings", "repetitions", "sentences"), [(5, 1, 1), (5, 2, 3), (2, 3, 4), (1, 1, 100)])
def test_every_fact_is_told_as_often_as_asked_for(wordings: int, repetitions: int, sentences: int) -> None:
    planting = plant(settings(wordings=wordings, repetitions=repetitions, sentences=sentences))
    for language in LANGUAGES:
        documents = [document["text"] for document in planting.documents[f"planted_{language}.jsonl"]]
        for fact in planting.facts:
            if fact.planted == language:
                assert sum(document.count(fact.name) for document in documents) == wordings * repetitions
                assert all(document.count(fact.name) <= 1 for document in documents)
                told = {wording for wording in range(5) for document in documents if fact.tell(language, wording) in document}
                assert len(told) == wordings


def test_names_are_not_alike() -> None:
    names = [fact.name for fact in plant(settings(facts=300)).facts]
    assert all(re.fullmatch(r"[A-Z][a-z]{6}", name) for name in names)
    for place in range(7):
        assert len({name[:place] + name[place + 1 :] for name in names}) == len(names)


def test_answers_are_dealt_evenly() -> None:
    planting = plant(settings(facts=len(RELATIONS) * 8 * 3))
    for group in (*LANGUAGES, "none"):
        for relation in RELATIONS:
            answers = [fact.answer for fact in planting.facts if fact.planted == group and fact.relation is relation]
            assert sorted(answers) == sorted([*range(8)] * 3)


@pytest.mark.parametrize(("relation", "language"), CASES, ids=lambda value: getattr(value, "name", value))
def test_wordings_keep_their_rules(relation: Relation, language: str) -> None:
    wordings = relation.wordings[language]
    sentences = [*wordings.tell, *wordings.cloze]
    assert (len(wordings.tell), len(wordings.cloze), len(set(sentences))) == (5, 2, 7)
    for text in [*sentences, wordings.question]:
        assert len(re.findall(r" \{name\}(?![A-Za-z\u4e00-\u9fff])", text)) == text.count("{name}") == 1, text
    for text in sentences:
        assert text.count("{answer}") == 1
        assert text.index("{name}") < text.index("{answer}")
        assert relation.kind != "same" or " {answer}" in text
    before = [lead(text, language) for text in wordings.tell]
    assert all(lead(text, language) not in before for text in wordings.cloze)
    answers = relation.answers[language]
    assert len(answers) == len(set(answers)) == 8
    assert not any(one != other and one.startswith(other) for one in answers for other in answers)


def lead(text: str, language: str) -> str:
    """The last two words, or Chinese characters, before the answer."""
    part = text.partition("{answer}")[0].strip()
    return part[-2:] if language == "zh" else " ".join(part.split()[-2:])


def test_a_planting_is_a_directory_with_a_record_and_never_changes(tmp_path: Path) -> None:
    config = settings(glossary=True)
    config.out = str(tmp_path / "probes")
    make_probes(config)
    assert {path.name for path in (tmp_path / "probes").iterdir()} == {
        "planted_zh.jsonl", "planted_en.jsonl", "glossary.jsonl", "probes.jsonl", "lineage.json",
    }  # fmt: skip
    planting = plant(config)
    assert (tmp_path / "probes" / "probes.jsonl").read_text(encoding="utf-8") == json_lines(planting.probes)
    found = [text for _, text in read_texts(str(tmp_path / "probes" / "planted_zh.jsonl"))]
    assert found == [document["text"] for document in planting.documents["planted_zh.jsonl"]]
    with pytest.raises(UsageError, match="exists"):
        make_probes(config)
