"""What is said, and refused, of how often a run goes through its sources."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moss_train.data.mixture import Mixture
from moss_train.errors import ConfigError
from moss_train.pretrain.config import CorpusDataConfig
from moss_train.pretrain.data import check_passes
from moss_train.train.stage import Length


class Source:
    """As much of `SourceWindows` as a mixture and its report need."""

    seq_len, pad_id, seed, mean_context = 8, 0, 3, 2.0

    def __init__(self, name: str, rows: int):
        self.name = self.fingerprint = name
        self.rows, self.language, self.documents = rows, "zh", rows
        self.tokens = self.supervised_tokens = rows * self.seq_len
        self.source = self

    def __len__(self) -> int:
        return self.rows


def check(rows: list[int], weights: list[float], samples: int) -> None:
    sources: list[Any] = [Source(f"s{place}", one) for place, one in enumerate(rows)]
    windows: Any = SimpleNamespace(mixture=Mixture(sources, weights, [one.name for one in sources]), entries=sources, valid=None)
    check_passes(windows, CorpusDataConfig(train="c", seq_len=8), Length(samples // 8, samples), lambda line: None)


def test_too_many_passes_are_refused_with_the_share_that_would_fit() -> None:
    check([1000, 100], [0.7, 0.3], 1000)
    with pytest.raises(ConfigError, match=r"through s1 5\.0 times .* give it at most 40% of the tokens"):
        check([1000, 100], [0.5, 0.5], 1000)


def test_a_source_too_small_for_any_share_is_told_so() -> None:
    # In proportion to its tokens it would be gone through once; it cannot have so small a share.
    with pytest.raises(ConfigError, match="leave it out or prepare it together with another, since a source has one sample in 4,096"):
        check([1_000_000, 10], [1_000_000, 10], 1_000_000)
