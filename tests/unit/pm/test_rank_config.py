"""Settings of ranking that are refused."""

from __future__ import annotations

import pytest

from moss_train.pm.rank_config import By, Checker, JudgeConfig, RankConfig

JUDGE = JudgeConfig(url="http://127.0.0.1:1/v1", model="m")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RankConfig(), "by must be given: by=checker or judge or person"),
        (RankConfig(by=By.judge), "judge.url must be given"),
        (RankConfig(by=By.judge), "judge.model must be given"),
        (RankConfig(by=By.person), "person must be given"),
        (RankConfig(by=By.person, person="x", checker=Checker.exact), "checker has an effect on by=checker only"),
        (RankConfig(by=By.checker, judge=JUDGE), "judge.* has an effect on by=judge only"),
        (RankConfig(by=By.checker, person="x"), "person has an effect on by=person only"),
        (RankConfig(by=By.judge, judge=JudgeConfig("u", "m", concurrency=0)), "judge.concurrency is 0"),
        (RankConfig(by=By.judge, judge=JudgeConfig("u", "m", temperature=float("nan"))), "judge.temperature is nan"),
        (RankConfig(by=By.judge, judge=JudgeConfig("u", "m", timeout_seconds=0)), "judge.timeout_seconds is 0"),
    ],
)
def test_what_is_refused(config: RankConfig, expected: str) -> None:
    assert any(expected in problem for problem in config.problems()), config.problems()


def test_what_is_fine() -> None:
    assert not RankConfig(by=By.judge, judge=JUDGE).problems()
    assert not RankConfig(by=By.checker).problems()
    assert not RankConfig(by=By.person, person="x").problems()
