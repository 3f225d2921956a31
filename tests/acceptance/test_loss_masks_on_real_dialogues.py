"""On all 1,008 published dialogues: which tokens carry loss, against oracles that share no code with the renderer.

* `release`: the published masking, written again from its description. Every field is encoded whole by stock transformers, its control
  parsed out of the text; the meta instruction is masked, and in Tool Responses everything between marker and terminator, whose lengths come
  from the tokenizer; a dialogue stops before the turn that would exceed 2,048 ids.
* `generated` and `reply`: by position in the wire text. A regular expression finds what is trained; every id is laid over the text by its
  bytes.

The tokenizers are one trained on the dialogues, and one loaded from vocab.json, merges.txt and added_tokens.json in the published layout.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from transformers import AutoTokenizer

from moss_train.data.dialogue import Dialogue, meta_instruction, read_dialogues
from moss_train.data.formats import parse_moss003
from moss_train.data.loader import RowDataset
from moss_train.data.packing import IGNORE_INDEX, Example, build_row
from moss_train.data.render import Rendered, render_all
from moss_train.data.tokenizer import MossTokenizer
from tests.tokenizer_directories import learn_merges, write_gpt2_files

LIMIT = 2048
VOCABULARY = 8192


@pytest.fixture(scope="module")
def records(real_data: Path) -> list[dict[str, Any]]:
    folder = real_data / "moss-003-sft-sample"
    return [json.loads(line) for name in ("train.jsonl", "dev.jsonl") for line in (folder / name).open(encoding="utf-8")]


@pytest.fixture(scope="module")
def dialogues(records: list[dict[str, Any]]) -> list[Dialogue]:
    return [parse_moss003(record, f"sample:{number}") for number, record in enumerate(records)]


@pytest.fixture(scope="module", params=["trained", "published layout"])
def tokenizer(request: pytest.FixtureRequest, records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> MossTokenizer:
    texts = [field for record in records for turn in record["chat"].values() for field in turn.values()]
    if request.param == "trained":
        return MossTokenizer.train(texts[::3], VOCABULARY)
    folder = tmp_path_factory.mktemp("published")
    return MossTokenizer.load(write_gpt2_files(folder, *learn_merges(texts[1::4], VOCABULARY - 100)))


Rendering = Callable[[str, int | None], tuple[list[Rendered], Counter[str]]]


@pytest.fixture(scope="module")
def rendering(dialogues: list[Dialogue], tokenizer: MossTokenizer) -> Rendering:
    """All dialogues, rendered once for each policy and limit."""
    return functools.cache(lambda policy, limit: render_all(dialogues, tokenizer, policy, limit))


@pytest.fixture(scope="module")
def stock(tokenizer: MossTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stock")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder, model_max_length=10**9)


Encode = Callable[[str], list[int]]


def published_masking(record: dict[str, Any], encode: Encode) -> tuple[list[int], list[int]] | None:
    """Ids and labels as the published fine-tuning script makes them, -100 where there is no loss; None where it drops the dialogue."""
    marker = len(encode("<|Results|>:"))
    terminator = len(encode("<eor>\n"))
    ids = list(encode(record["meta_instruction"]))
    silent = [(0, len(ids))]
    meta = len(ids)
    for number in range(1, record["num_turns"] + 1):
        turn_ids: list[int] = []
        turn_silent = []
        for key in ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"):
            field = encode(record["chat"][f"turn_{number}"][key])
            start = len(ids) + len(turn_ids)
            if key == "Tool Responses":
                turn_silent.append((start + marker, start + len(field) - terminator))
            turn_ids += field
        if len(ids) + len(turn_ids) > LIMIT:
            break
        ids += turn_ids
        silent += turn_silent
    if len(ids) == meta:
        return None
    labels = list(ids)
    for start, end in silent:
        labels[start:end] = [-100] * (end - start)
    return ids, labels


def encoders(records: list[dict[str, Any]], stock: Any) -> tuple[Encode, Encode]:
    """Two ways to encode a field: as published, every control in it parsed; and with only the control at its very end parsed."""
    texts = {field for record in records for turn in record["chat"].values() for field in turn.values()}
    fields = [*texts, *{record["meta_instruction"] for record in records}, "<|Results|>:", "<eor>\n"]
    published = dict(zip(fields, stock(fields).input_ids, strict=True))
    heads = [re.sub(r"<eo[hmtcr]>\n\Z", "", field) for field in fields]
    plain = stock(heads, split_special_tokens=True).input_ids
    tails = stock([field[len(head) :] for field, head in zip(fields, heads, strict=True)]).input_ids
    guarded = {field: head + tail for field, head, tail in zip(fields, plain, tails, strict=True)}
    return published.__getitem__, guarded.__getitem__


# The one dialogue whose text spells a control: each reply ends `<eor><eom>`. The published script takes that `<eor>` for the control and
# trains MOSS to write it; here it stays the five letters that someone's program left there.
FORGED_ID, FORGED_CATEGORY = 48, "tool"


def test_release_is_the_published_masking(
    records: list[dict[str, Any]], dialogues: list[Dialogue], rendering: Rendering, tokenizer: MossTokenizer, stock: Any
) -> None:
    published, guarded = encoders(records, stock)
    rendered, counts = rendering("release", LIMIT)
    by_origin = {row.origin: row for row in rendered}
    forged = []
    for record, dialogue in zip(records, dialogues, strict=True):
        expected = published_masking(record, published)
        if any(re.search(r"<eo[hmtcr]>(?!\n\Z)", field) for turn in record["chat"].values() for field in turn.values()):
            forged.append((record["conversation_id"], record.get("category")))
            assert expected is not None
            assert expected[0].count(tokenizer.eor) > by_origin[dialogue.origin].input_ids.count(tokenizer.eor)
            expected = published_masking(record, guarded)
        row = by_origin.get(dialogue.origin)
        assert (row is None) == (expected is None), dialogue.origin
        if row is not None and expected is not None:
            ids, labels = expected
            assert row.input_ids == ids, row.origin
            assert build_row([Example(row.input_ids, row.loss_mask)], LIMIT).targets.tolist() == labels[1:], row.origin
    assert forged == [(FORGED_ID, FORGED_CATEGORY)]
    assert len(records) == counts["dialogues"] == 1008
    assert counts["dialogues_shortened"] > 0, "the limit must matter for the test to say something"


# The regular expression must not take a marker inside a text for a segment, so it goes field by field, each anchored at both ends.
TRAINED_TEXT = {
    "generated": re.compile(r"<\|(?:Inner Thoughts|Commands|MOSS)\|>:(?P<trained>.*<eo[tcm]>\n)", re.DOTALL),
    "reply": re.compile(r"<\|MOSS\|>:(?P<trained>.*<eom>\n)", re.DOTALL),
}


def trained_bytes(record: dict[str, Any], policy: str) -> tuple[bytes, npt.NDArray[np.bool_]]:
    """The wire text as bytes, and for each byte whether it is trained."""
    wire = [record["meta_instruction"].encode()]
    marks = [np.zeros(len(wire[0]), bool)]
    for turn in record["chat"].values():
        for field in turn.values():
            wire.append(field.encode())
            match = TRAINED_TEXT[policy].fullmatch(field)
            start = len(field[: match.start("trained")].encode()) if match else len(wire[-1])
            marks.append(np.arange(len(wire[-1])) >= start)
    return b"".join(wire), np.concatenate(marks)


@pytest.mark.parametrize("policy", sorted(TRAINED_TEXT))
def test_what_moss_writes_is_trained_and_nothing_else(
    records: list[dict[str, Any]], rendering: Rendering, tokenizer: MossTokenizer, policy: str
) -> None:
    spelled = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.size)]
    rendered, _ = rendering(policy, None)
    assert len(rendered) == len(records) == 1008
    for record, row in zip(records, rendered, strict=True):
        wire, marks = trained_bytes(record, policy)
        tokens = [spelled[token_id] for token_id in row.input_ids]
        assert b"".join(tokens) == wire, row.origin
        ends = np.cumsum([len(token) for token in tokens])
        trained = np.diff(np.concatenate([[0], np.cumsum(marks)])[np.concatenate([[0], ends])])
        lengths = np.diff(np.concatenate([[0], ends]))
        assert (trained == np.where(row.loss_mask, lengths, 0)).all(), row.origin


def test_dialogues_are_cut_after_whole_turns(rendering: Rendering, tokenizer: MossTokenizer) -> None:
    whole, _ = rendering("generated", None)
    by_origin = {row.origin: row for row in whole}
    shortened, counts = rendering("generated", LIMIT)
    for row in shortened:
        length = len(row.input_ids)
        assert length <= LIMIT
        assert row.input_ids == by_origin[row.origin].input_ids[:length]
        assert row.loss_mask == by_origin[row.origin].loss_mask[:length]
        assert row.input_ids[-2:] == [tokenizer.eom, tokenizer.newline]
    assert counts["supervised_tokens"] + counts["supervised_tokens_dropped"] == sum(row.supervised_tokens for row in whole)


def test_every_token_of_every_dialogue_is_in_a_row_once(rendering: Rendering, tokenizer: MossTokenizer) -> None:
    rendered, counts = rendering("generated", LIMIT)
    dataset = RowDataset(rendered, LIMIT, seed=0, pad_id=tokenizer.endoftext)
    assert dataset.supervised_tokens == counts["supervised_tokens"]
    assert dataset.tokens == counts["tokens"] - len(rendered)
    assert dataset.fill > 0.9
    targets = [dataset.row(index).targets for index in range(len(dataset))]
    assert sum(int((row != IGNORE_INDEX).sum()) for row in targets) == counts["supervised_tokens"]
    assert all((row != IGNORE_INDEX).any() for row in targets)


def test_the_default_meta_instruction_is_that_of_the_data(records: list[dict[str, Any]], real_data: Path) -> None:
    """Every variant in the data is the default with some switches on, to the letter; the published file differs in its switches alone."""
    switches = {
        "inner_thoughts": "- Inner thoughts: enabled",
        "web_search": "- Web search: enabled",
        "calculator": "- Calculator: enabled",
        "equation_solver": "- Equation solver: enabled",
        "text_to_image": "- Text-to-image: enabled",
    }
    for text in {record["meta_instruction"] for record in records}:
        assert text == meta_instruction(**{name: line in text for name, line in switches.items()})
    published = (real_data / "moss-003-sft-sample" / "meta_instruction.txt").read_text(encoding="utf-8")
    preamble, _ = meta_instruction().split("- Inner thoughts")
    assert published.startswith(preamble)


def test_the_files_are_read_without_a_complaint(real_data: Path, dialogues: list[Dialogue]) -> None:
    read, problems = read_dialogues(str(real_data / "moss-003-sft-sample" / "*.jsonl"))
    assert not problems.counts
    assert sorted(map(repr, (item.turns for item in read))) == sorted(map(repr, (item.turns for item in dialogues)))
