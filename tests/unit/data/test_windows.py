"""Windows of a corpus: every token a target once, documents apart, the same for any ranks and micro-batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.corpus import Corpus, CorpusSource, Shard, shard_paths
from moss_train.data.loader import StepPlan, collate, step_batches
from moss_train.data.mixture import Mixture, Phase
from moss_train.data.windows import HeldOut, SourceWindows, spread
from moss_train.errors import DataError

END = 9
BYTES = np.array([1, 1, 2, 3, 1, 1, 1, 1, 1, 0])


def write_corpus(folder: Path, shards: list[list[list[int]]], name: str = "zh") -> tuple[Corpus, CorpusSource]:
    """A corpus of one source, of documents as ids without what closes them."""
    made = []
    for number, documents in enumerate(shards):
        ids = [token for document in documents for token in [*document, END]]
        shard = Shard(folder, name, f"shard-{number:05d}", len(documents), len(ids), 1, END + 1, {"tokens": f"{name} {number} {ids}"})
        path = shard_paths(folder, name, shard.name)["tokens"]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(ids, dtype="<u4"))
        made.append(shard)
    source = CorpusSource(name, "zh", None, sum(one.documents for one in made), sum(one.tokens for one in made), 1, "f", tuple(made), {})
    return Corpus(folder, "tokenizer", END + 1, END, {name: source}, {}, "inputs"), source


SHARDS = st.lists(st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=5), min_size=1, max_size=4)


@given(shards=SHARDS, seq_len=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_every_token_is_a_target_once_after_the_one_before_it(
    shards: list[list[list[int]]], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus, source = write_corpus(tmp_path_factory.mktemp("corpus"), shards)
    stream = [token for shard in shards for document in shard for token in [*document, END]]
    windows = SourceWindows(corpus, source, seq_len, 0, BYTES)
    rows = [windows.row(index) for index in range(len(windows))]
    assert [token for row in rows for token in row.targets.tolist()] == stream
    assert [token for row in rows for token in row.input_ids.tolist()] == [END, *stream[:-1]]
    assert sum(row.text_bytes for row in rows) == sum(int(BYTES[token]) for token in stream)
    assert windows.tokens == len(stream)
    for row in rows:
        assert sum(row.doc_lengths) == len(row.input_ids) <= seq_len
        place = 0
        for length in row.doc_lengths:
            inside = row.input_ids[place : place + length].tolist()
            assert END not in inside[1:], "an input that closes a document opens the next one"
            assert place == 0 or inside[0] == END
            assert row.position_ids[place : place + length].tolist() == list(range(length))
            place += length
    with pytest.raises(IndexError):
        windows.row(len(windows))


def test_an_epoch_takes_every_window_once(tmp_path: Path) -> None:
    corpus, source = write_corpus(tmp_path, [[[1, 2, 3]] * 10, [[4, 5]] * 7])
    windows = SourceWindows(corpus, source, 4, 3, BYTES)
    for epoch in range(3):
        rows = [windows.sample(epoch * len(windows) + number) for number in range(len(windows))]
        assert sorted(row.targets.tolist() for row in rows) == sorted(windows.row(index).targets.tolist() for index in range(len(windows)))


def test_held_out_windows_are_not_trained_on(tmp_path: Path) -> None:
    corpus, source = write_corpus(tmp_path, [[[number % 9] * 5 for number in range(30)]])
    train, held = (SourceWindows(corpus, source, 8, 3, BYTES, part) for part in ((0, 20), (20, 23)))
    assert len(train) == 20
    assert len(held) == 3
    assert train.tokens + held.tokens == source.tokens == 180
    valid = HeldOut([held], [5], most_tokens=16)
    assert len(valid) == 2
    assert valid.row(0).source == 5
    assert valid.row(0).targets.tolist() == held.row(0).targets.tolist()
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 10) == [0, 1, 2]


def mixed(folder: Path) -> Mixture:
    """Two sources in two phases, each smaller than what the run takes of it."""
    parts = []
    for name, documents in (("zh", [[1, 2, 3]] * 13), ("en", [[number % 9, 4] for number in range(40)])):
        corpus, source = write_corpus(folder, [documents, documents[:5]], name)
        parts.append(SourceWindows(corpus, source, 4, 7, BYTES))
    return Mixture(parts, [Phase(90, (3.0, 1.0)), Phase(None, (1.0, 2.0))], ["zh", "en"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_ranks_and_micro_batches_do_not_change_which_samples_a_step_takes(world_size: int, micro_batch_size: int, tmp_path: Path) -> None:
    """In order, through a change of phase and ends of epochs, also where the run is gone on with at any step."""
    whole, last, size = mixed(tmp_path), 300, 96
    expected = [whole.sample(number).targets.tolist() for number in range(last)]
    plan = StepPlan(size, micro_batch_size, world_size)
    for resumed_at in range(0, last, size):
        mixture = mixed(tmp_path)
        if resumed_at:
            mixture.go_on(resumed_at, whole.position(resumed_at))
        seen: list[list[int]] = []
        for first in range(resumed_at, last, size):
            of_ranks = [step_batches(mixture, first, plan, rank, last, by_source=True) for rank in range(world_size)]
            for micro_step, rank, row in itertools.product(range(plan.accumulation), range(world_size), range(micro_batch_size)):
                targets = of_ranks[rank][micro_step].targets[row]
                seen.append(targets[targets >= 0].tolist())
        # The last step is filled up with rows of padding.
        assert [row for row in seen if row] == expected[resumed_at:]


def test_batches_say_of_each_row_its_source_objective_and_bytes(tmp_path: Path) -> None:
    mixture = mixed(tmp_path)
    mixture.objectives = [1.0, 0.5]
    rows = [mixture.sample(number) for number in range(7)]
    batch = collate([*rows, None], 4, END, by_source=True)
    assert batch.rows["row_sources"].tolist() == [row.source for row in rows] + [0]
    assert batch.rows["row_weights"].tolist() == [[1.0, 0.5][row.source] for row in rows] + [0.0]
    assert batch.rows["row_bytes"].tolist() == [sum(int(BYTES[one]) for one in row.targets) for row in rows] + [0]
    assert batch.weight == sum([1.0, 0.5][row.source] * len(row.targets) for row in rows)
    assert batch.tokens == sum(len(row.targets) for row in rows)
    assert set(batch.inputs) >= {"row_sources", "row_weights", "row_bytes"}
    assert not collate(rows, 4, END).rows


def test_a_shard_that_is_cut_or_taken_away_under_a_run_is_named(tmp_path: Path) -> None:
    corpus, source = write_corpus(tmp_path, [[[1, 2, 3]] * 100])
    windows = SourceWindows(corpus, source, 16, 0, BYTES)
    windows.row(0)
    path = shard_paths(tmp_path, "zh", "shard-00000")["tokens"]
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"shard-00000.tokens.npy: ends at token"):
        windows.row(len(windows) - 1)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000.tokens.npy: was there when it was opened, and is gone"):
        windows.row(0)
