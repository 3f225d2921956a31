"""The judge, against a server on the loopback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moss_train.errors import UsageError
from moss_train.pm import judge as judging
from moss_train.pm.judge import Judge, read_verdict
from moss_train.pm.rank_config import JudgeConfig
from tests.unit.pm.judge_server import Server, answers, prefers_first, prefers_longer, serve
from tests.unit.pm.ranking_lines import line


def judge_of(server: Server, **settings: object) -> Judge:
    values = {"url": f"http://{server.place}/v1", "model": "m", "allow": [server.place], "backoff_seconds": 0.01, "retries": 2}
    return Judge(JudgeConfig(**{**values, **settings}))  # type: ignore[arg-type]


def test_a_judge_that_prefers_what_stands_first_gives_ties() -> None:
    with serve(prefers_first) as server:
        outcome = judge_of(server).rank_line(line(["a", "b", "c"]))
    assert outcome.ranks == [1, 1, 1]
    assert outcome.counts == {"pairs": 3, "tied": 3, "contradictory": 3, "abstained": 0}
    assert len(server.requests) == 6
    assert outcome.provenance["pairs"][0] == {"pair": [0, 1], "verdicts": [0, 1]}


def test_a_judge_of_content_gives_ranks() -> None:
    with serve(prefers_longer) as server:
        outcome = judge_of(server, temperature=0.5).rank_line(line(["aa", "b", "c", "aa", "dddd", ""]))
    # Equal responses are one, and one without text has no rank.
    assert outcome.ranks == [2, 3, 3, 2, 1, None]
    assert outcome.counts == {"pairs": 6, "tied": 1, "contradictory": 0, "abstained": 0}
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.5, 1024)
    assert "Human: 2+3?" in request["messages"][0]["content"]
    assert outcome.provenance["pairs"][1] == {"pair": [0, 2], "verdicts": [0, 0]}
    assert outcome.provenance["model"] == "m"
    assert len(outcome.provenance["prompt_sha256"]) == 64
    assert server.keys == [None] * 12


def test_failures_for_a_time_are_tried_again() -> None:
    with serve(lambda prompt, number: (500, "") if number == 1 else (429, "") if number == 2 else prefers_longer(prompt, number)) as server:
        outcome = judge_of(server).rank_line(line(["aa", "b"]))
    assert (outcome.ranks, len(server.requests)) == ([1, 2], 4)


@pytest.mark.parametrize(("told", "seconds"), [("1", 1.0), ("soon", 0.0)])
def test_a_server_that_says_how_long_to_wait_is_heeded(told: str, seconds: float) -> None:
    with serve(lambda prompt, number: (429, "") if number == 1 else prefers_longer(prompt, number)) as server:
        server.retry_after = told
        started = time.monotonic()
        assert judge_of(server).rank_line(line(["aa", "b"])).ranks == [1, 2]
    assert seconds <= time.monotonic() - started < seconds + 5


def test_a_url_with_a_query_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="has a query") as caught:
        Judge(JudgeConfig(url="https://example.com/v1?key=secret", model="m"))
    assert "secret" not in str(caught.value)


def test_what_is_no_verdict_is_an_abstention() -> None:
    with serve(lambda prompt, number: (200, "I cannot say.")) as server:
        outcome = judge_of(server).rank_line(line(["aa", "b"]))
    assert outcome.name == "no_verdict"
    assert outcome.counts["abstained"] == 1
    assert len(server.requests) == 6


def test_an_unknown_pair_does_not_count() -> None:
    def behave(prompt: str, number: int) -> tuple[int, str]:
        return (200, "?") if set(answers(prompt)) == {"aa", "b"} else prefers_longer(prompt, number)

    with serve(behave) as server:
        outcome = judge_of(server, retries=0).rank_line(line(["aa", "b", "cccc"]))
    assert outcome.ranks == [2, 2, 1]
    assert outcome.provenance["pairs"][0] == {"pair": [0, 1], "verdicts": [None, None]}


def test_a_wrong_key_is_told_and_the_key_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    with serve(lambda prompt, number: (401, "")) as server, pytest.raises(UsageError) as caught:
        judge_of(server, key_env="JUDGE_KEY").rank_line(line(["aa", "b"]))
    assert "answered 401: it does not accept the key in $JUDGE_KEY" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert server.keys == ["Bearer secret-123"]


@pytest.mark.parametrize("value", [None, "", "with\nbreak", "schlüssel"])
def test_what_is_no_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UsageError, match=r"judge\.key_env=JUDGE_KEY") as caught:
        Judge(JudgeConfig(url="https://example.com/v1", model="m", key_env="JUDGE_KEY"))
    assert not value or value not in str(caught.value)


def test_errors_of_the_request_are_told_at_once() -> None:
    with serve(lambda prompt, number: (400, "")) as server, pytest.raises(UsageError, match=r"answered 400.*judge\.model=m"):
        judge_of(server).rank_line(line(["aa", "b"]))
    assert len(server.requests) == 1


def test_a_server_that_stays_away_is_told() -> None:
    with serve(lambda prompt, number: (503, "")) as server, pytest.raises(UsageError, match="answered 503, after 3 requests"):
        judge_of(server).rank_line(line(["aa", "b"]))


def test_a_private_place_must_be_named() -> None:
    with serve(prefers_first) as server, pytest.raises(UsageError, match=r"name the place in judge\.allow"):
        judge_of(server, allow=[]).rank_line(line(["aa", "b"]))
    assert not server.requests


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    path.write_text("{context} | {first} | {second} | {other}", encoding="utf-8")
    with serve(lambda prompt, number: (200, "A")) as server:
        judge_of(server, template=str(path)).rank_line(line(["{second} {0}", "b"]))
    # What was said is not looked through for places.
    assert server.requests[0]["messages"][0]["content"] == "Human: 2+3? | {second} {0} | b | {other}"
    path.write_text("{context} {first}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"lacks \{second\}"):
        judging.read_template(str(path))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "A"),
        ("[[A]] is wrong, so [[b]]", "B"),
        ("[[ tie ]]", "C"),
        ("**B**", "B"),
        ("Tie.", "C"),
        ("A is better", None),
        ("", None),
    ],
)
def test_verdicts(text: str, verdict: str | None) -> None:
    body = '{"choices": [{"message": {"content": "' + text + '"}}]}'
    assert read_verdict(body.encode()) == verdict


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff"])
def test_answers_that_are_none(body: bytes) -> None:
    assert read_verdict(body) is None
