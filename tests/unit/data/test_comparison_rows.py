"""Comparisons as ids: what is kept of long ones, what is refused by name, and how batches are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moss_train.data.comparison_render import comparison_of, render_comparisons
from moss_train.data.comparison_rows import ComparisonEvaluation, ComparisonRows, Store, collate_comparisons, write_store
from moss_train.data.comparisons import Comparison, parse_comparison
from moss_train.data.loader import IGNORE_INDEX
from moss_train.data.tokenizer import MossTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    return MossTokenizer.train(["What is two plus three? Five. Six. Seven. Hello there, how are you today? 你好吗？很好。"] * 4, 512)


def line(*replies: str, turns: int = 1, ranks: list[int] | None = None, question: str = " What is two plus three?") -> dict[str, Any]:
    earlier = [{"human": f" Hello there {n}", "moss": f" Hello {n}, how are you today?"} for n in range(turns - 1)]
    responses = [{"moss": f" {text}", "rank": rank} for text, rank in zip(replies, ranks or range(1, len(replies) + 1))]
    return {"id": "x", "context": {"meta_instruction": "Be kind.\n", "turns": [*earlier, {"human": question}]}, "responses": responses}


def comparison(*replies: str, **options: Any) -> Comparison:
    return parse_comparison(line(*replies, **options), "file:1")


def rendered(tokenizer: MossTokenizer, one: Comparison, seq_len: int = 512, **options: Any) -> tuple[list[Any], list[str]]:
    codes: list[str] = []
    found = list(render_comparisons(iter([one]), tokenizer, seq_len, lambda error: codes.append(error.code), **options))
    return found, codes


def test_a_document_ends_with_the_token_that_ends_the_reply(tokenizer: MossTokenizer) -> None:
    (one,), codes = rendered(tokenizer, comparison("Five.", "Six, or seven."))
    assert not codes
    for ids, marks, text in zip(one.documents, one.marks, (" Five.", " Six, or seven.")):
        assert ids[-1] == tokenizer.eom
        assert ids.count(tokenizer.eom) == 1
        said = [token for token, mark in zip(ids, marks) if mark]
        assert tokenizer.decode(said[:-1]) == text
        assert said[-1] == tokenizer.eom
    assert one.reply_tokens == [len(tokenizer.encode(" Five.")), len(tokenizer.encode(" Six, or seven."))]
    assert one.best == 0
    assert comparison_of(one.line) == Comparison(
        comparison("Five.", "Six, or seven.").context,
        comparison("Five.", "Six, or seven.").responses,
        comparison("Five.", "Six, or seven.").pairs,
        "en",
    )


def test_the_oldest_turns_go_first_and_of_all_responses_alike(tokenizer: MossTokenizer) -> None:
    whole, _ = rendered(tokenizer, comparison("Five.", "Six.", turns=4))
    alone, _ = rendered(tokenizer, comparison("Five.", "Six."))
    limit = len(whole[0].documents[0]) - 1
    (cut,), codes = rendered(tokenizer, comparison("Five.", "Six.", turns=4), seq_len=limit)
    assert not codes
    meta = tokenizer.encode("Be kind.\n")
    assert all(ids[: len(meta)] == meta and len(ids) <= limit for ids in cut.documents)
    assert tokenizer.decode(cut.documents[0]).count("Hello there") == 2
    assert rendered(tokenizer, comparison("Five.", "Six.", turns=4), seq_len=limit, on_long="drop") == ([], ["too_long"])
    # Where nothing but the last turn fits, it is what it would be without the others.
    (least,), _ = rendered(tokenizer, comparison("Five.", "Six.", turns=4), seq_len=len(alone[0].documents[0]))
    assert least.documents == alone[0].documents


def test_a_reply_is_cut_only_where_that_is_asked_for(tokenizer: MossTokenizer) -> None:
    long = comparison("Five. " * 40, "Six. " * 40)
    assert rendered(tokenizer, long, seq_len=100) == ([], ["too_long"])
    (cut,), codes = rendered(tokenizer, long, seq_len=100, on_long="truncate")
    assert not codes
    assert [len(ids) for ids in cut.documents] == [100, 100]
    assert all(ids[-1] == tokenizer.eom for ids in cut.documents)
    assert cut.reply_tokens == [sum(marks) - 1 for marks in cut.marks]


def test_responses_that_are_equal_after_cutting_are_told_of(tokenizer: MossTokenizer) -> None:
    same = comparison("Five. " * 40 + "Yes.", "Five. " * 40 + "No.")
    assert rendered(tokenizer, same, seq_len=100, on_long="truncate") == ([], ["equal_after_truncation"])


def test_more_responses_than_allowed_are_told_of(tokenizer: MossTokenizer) -> None:
    assert rendered(tokenizer, comparison("1", "2", "3"), max_responses=2) == ([], ["too_many_responses"])


@pytest.fixture
def rows(tokenizer: MossTokenizer, tmp_path: Path) -> ComparisonRows:
    given = [
        comparison("Five.", "Six."),
        comparison("Five.", "Six.", "Seven.", "Eight.", ranks=[1, 2, 2, 3]),
        comparison("Yes", "No", turns=2),
    ]
    assert write_store(tmp_path, render_comparisons(iter(given), tokenizer, 512, pytest.fail)) == 3
    store = Store(tmp_path)
    return ComparisonRows(store, np.arange(3), 0, tokenizer.endoftext, 512)


def test_a_batch_is_one_packed_row_with_a_reward_at_the_end_of_each_response(rows: ComparisonRows, tokenizer: MossTokenizer) -> None:
    batch = collate_comparisons([rows.row(1), None, rows.row(0)], rows.pad_id, with_lm=True)
    inputs = batch.inputs
    documents = [*rows.row(1).documents, *rows.row(0).documents]
    assert batch.weight == 2.0
    assert batch.tokens == sum(map(len, documents))
    assert inputs["input_ids"].shape[1] % 64 == 0
    assert torch.equal(inputs["input_ids"][0, : batch.tokens], torch.from_numpy(np.concatenate(documents).astype(np.int64)))
    assert (inputs["input_ids"][0][inputs["reward_index"]] == tokenizer.eom).all()
    assert inputs["cu_seqlens"].tolist()[:-1] == np.cumsum([0, *map(len, documents)]).tolist()
    # Of K = 4 with one tie, six pairs; then one.
    assert inputs["pair_index"].tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3], [4, 5]]
    assert inputs["pair_weight"].tolist() == pytest.approx([1 / 6] * 6 + [1])
    assert inputs["pair_untied_weight"].tolist() == pytest.approx([0.2, 0.2, 0.2, 0.0, 0.2, 0.2, 1])
    assert inputs["pair_tied"].tolist() == [False, False, False, True, False, False, False]
    places = torch.nonzero(inputs["lm_targets"][0] != IGNORE_INDEX).flatten()
    assert float(inputs["lm_weights"].sum()) == pytest.approx(2.0)
    spoken = inputs["lm_targets"][0][places].tolist()
    assert tokenizer.decode([token for token in spoken if token != tokenizer.eom]) == " Five. Five."


def test_a_batch_of_nothing_is_padding_without_weight(rows: ComparisonRows) -> None:
    batch = collate_comparisons([None, None], rows.pad_id)
    assert (batch.weight, batch.tokens) == (0.0, 0)
    assert batch.inputs["pair_index"].shape == (0, 2)
    assert batch.inputs["reward_index"].shape == (0,)
    assert batch.inputs["input_ids"].shape == (1, 64)


def test_evaluation_takes_each_comparison_once_and_as_many_batches_on_every_rank(rows: ComparisonRows) -> None:
    parts = [ComparisonEvaluation(rows, 1, 2, rank, False) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert sorted(number for part in parts for numbers in part.numbers() for number in numbers) == [0, 1, 2]
    assert [[batch.weight for batch in part] for part in parts] == [[1.0, 1.0], [1.0, 0.0]]


def test_samples_of_an_epoch_are_each_comparison_once(rows: ComparisonRows) -> None:
    for epoch in range(3):
        origins = [len(rows.sample(3 * epoch + i).documents) for i in range(3)]
        assert sorted(origins) == [2, 2, 4]
