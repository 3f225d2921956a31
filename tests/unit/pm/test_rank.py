"""The job `rank`: from a file of responses to a file of comparisons, however often it is stopped."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts import lineage
from moss_train.data.formats.preference import read_comparisons
from moss_train.data.records import read_records
from moss_train.errors import DataError, MossTrainError, PreemptedError, UsageError
from moss_train.pm.rank import main
from moss_train.pm.rank_config import By, Checker, JudgeConfig, RankConfig
from tests.launch import REPOSITORY, environment, python, succeeded
from tests.unit.pm.judge_server import Server, prefers_longer, serve
from tests.unit.pm.ranking_lines import read, record, write


def sums(count: int) -> list[dict[str, Any]]:
    """Sums with a right answer, a wrong one, one that differs and one that is cut; every fifth has wrong ones only."""
    found = []
    for number in range(count):
        right = number + 2 if number % 5 else -1
        replies: list[Any] = [f"It is {number}.", f"It is {right}.", f"一共{right}", {"moss": f" {right} ", "finish": "length"}]
        found.append(record(replies, f"{number}+2?", id=f"s{number}", answer=number + 2, provenance={"model": "x"}, 键="值"))
    return found


def checker(tmp_path: Path, count: int = 20, name: str = "out.jsonl") -> RankConfig:
    responses = tmp_path / "responses.jsonl"
    if not responses.exists():
        write(responses, sums(count))
    return RankConfig(responses=str(responses), out=str(tmp_path / name), by=By.checker, checker=Checker.number)


def judged(tmp_path: Path, server: Server, name: str = "out.jsonl", **settings: Any) -> RankConfig:
    responses = tmp_path / "responses.jsonl"
    if not responses.exists():
        write(responses, [record(["x" * (number % 7), "y" * (number % 5), "zzz"], id=f"j{number}") for number in range(24)])
    values = {"url": f"http://{server.place}/v1", "model": "m", "allow": [server.place], "backoff_seconds": 0.01, "retries": 1}
    return RankConfig(responses=str(responses), out=str(tmp_path / name), by=By.judge, judge=JudgeConfig(**{**values, **settings}))


def test_lines_are_written_on_with_ranks_and_provenance(tmp_path: Path) -> None:
    config = checker(tmp_path)
    main(config)
    out = read(Path(config.out))
    assert [one["id"] for one in out] == [f"s{number}" for number in range(20) if number % 5]
    assert out[0]["responses"] == [
        {"moss": " It is 1.", "rank": 2},
        {"moss": " It is 3.", "rank": 1},
        {"moss": " 一共3", "rank": 1},
        {"moss": " 3 ", "finish": "length", "rank": 2},
    ]
    assert out[0]["provenance"] == {"model": "x", "by": "checker", "checker": "number"}
    assert (out[0]["键"], out[0]["answer"]) == ("值", 3)
    comparisons, problems = read_comparisons(config.out)
    assert (len(comparisons), problems.counts) == (16, {})
    assert not Path(f"{config.out}.partial").exists()


def test_real_solutions_become_the_comparisons_that_their_own_layout_gives(tmp_path: Path, real_data: Path) -> None:
    solved = [value.value for value in read_records(str(real_data / "gsm8k" / "model_solutions.jsonl"))]
    lines = []
    for one in solved:
        replies = [value["solution"].strip() for value in one.values() if isinstance(value, dict)]
        lines.append(record(replies, one["question"].strip(), answer=one["ground_truth"]))
    config = RankConfig(responses=str(tmp_path / "responses.jsonl"), out=str(tmp_path / "out.jsonl"), by=By.checker, checker=Checker.number)
    write(Path(config.responses), lines)
    main(config)
    found = lineage.load(Path(config.out))
    assert found is not None
    marks = [{value["is_correct"] for value in one.values() if isinstance(value, dict)} for one in solved]
    by_marks = {"all_correct": marks.count({True}), "all_wrong": marks.count({False}), "ranked": marks.count({True, False})}
    assert found.lineage.details["counts"] == by_marks
    direct, _ = read_comparisons(str(real_data / "gsm8k" / "model_solutions.jsonl"), on_bad="skip", max_bad_share=0.5)
    ranked, _ = read_comparisons(config.out)
    assert [one.pairs for one in ranked] == [one.pairs for one in direct]


def test_the_record_beside_it_says_what_was_left_out(tmp_path: Path) -> None:
    config = checker(tmp_path)
    lineage.write(Path(config.responses), lineage.Lineage("data", "sample"))
    main(config)
    found = lineage.load(Path(config.out))
    assert found is not None
    assert (found.lineage.kind, found.lineage.stage) == ("data", "rank")
    assert [(parent.role, parent.name) for parent in found.lineage.parents] == [("source", "responses.jsonl")]
    assert found.lineage.details["counts"] == {"all_wrong": 4, "ranked": 16}
    assert found.lineage.details["records"] == 16
    assert found.lineage.details["settings"]["checker"] == "number"
    assert found.files["out.jsonl"].bytes == Path(config.out).stat().st_size
    assert lineage.hash_files(Path(config.out))["out.jsonl"]["sha256"] == found.files["out.jsonl"].sha256


def test_an_earlier_ranking_is_replaced(tmp_path: Path) -> None:
    config = checker(tmp_path)
    old = record([{"moss": " 5", "score": 0.1}, {"moss": " 6", "score": 0.9}], answer=5, strengths=[[1, 0, 2.0]])
    write(Path(config.responses), [old])
    main(config)
    (found,) = read(Path(config.out))
    assert found["responses"] == [{"moss": " 5", "rank": 1}, {"moss": " 6", "rank": 2}]
    assert "strengths" not in found
    assert len(read_comparisons(config.out)[0]) == 1


def test_an_interruption_at_any_byte_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moss_train.pm import rank

    whole = checker(tmp_path, name="whole.jsonl")
    monkeypatch.setattr(rank.Partial, "remove", lambda self: None)
    main(whole)
    partial = Path(f"{whole.out}.partial").read_bytes()
    monkeypatch.undo()
    rng = random.Random(0)
    for cut in [0, 1, *rng.sample(range(len(partial)), 40), len(partial) - 1, len(partial)]:
        config = checker(tmp_path, name=f"cut{cut}.jsonl")
        Path(f"{config.out}.partial").write_bytes(partial[:cut])
        main(config)
        assert Path(config.out).read_bytes() == Path(whole.out).read_bytes()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    config = checker(tmp_path)
    Path(f"{config.out}.partial").write_text('{"settings": {"by": "checker", "checker": "exact", "responses": "x"}}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"other settings \(checker, responses\)"):
        main(config)
    Path(f"{config.out}.partial").write_text("something else\n", encoding="utf-8")
    with pytest.raises(DataError, match="no file of this program"):
        main(config)
    assert Path(f"{config.out}.partial").read_text(encoding="utf-8") == "something else\n"
    Path(f"{config.out}.partial").unlink()
    main(config)
    with pytest.raises(UsageError, match="exists"):
        main(config)


def test_killed_before_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moss_train.pm import rank

    config = checker(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(rank.Partial, "remove", lambda self: None)
        main(config)
    before = Path(config.out).read_bytes()
    main(config)
    assert Path(config.out).read_bytes() == before
    assert not Path(f"{config.out}.partial").exists()


def test_bad_lines_are_told_together_and_nothing_is_made(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [record(["5", "6"], answer=5), record(["5", "6"]), {"context": 3}])
    config = RankConfig(responses=str(path), out=str(tmp_path / "out.jsonl"), by=By.checker, checker=Checker.number)
    with pytest.raises(DataError, match=r"2 bad of 3 lines") as caught:
        main(config)
    assert "bad.jsonl:2: no_answer" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_is_ranked_nothing_is_made(tmp_path: Path) -> None:
    config = checker(tmp_path)
    write(Path(config.responses), [record(["7", "6"], answer=5), record(["7", "7"], answer=5)])
    with pytest.raises(DataError, match="all_wrong 1, one_response 1"):
        main(config)
    assert not Path(config.out).exists()


def test_the_judge_together_gives_what_it_gives_alone(tmp_path: Path) -> None:
    with serve(prefers_longer) as server:
        main(judged(tmp_path, server, "one.jsonl", concurrency=1))
        main(judged(tmp_path, server, "many.jsonl", concurrency=8))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "many.jsonl").read_bytes()
    found = lineage.load(tmp_path / "one.jsonl")
    assert found is not None
    counts = found.lineage.details["counts"]
    assert counts["ranked"] == len(read(tmp_path / "one.jsonl")) == 23
    assert counts["one_response"] == 1
    assert counts["pairs"] > 40
    assert found.lineage.details["settings"]["judge"]["template"].startswith("Below are")
    assert len(read_comparisons(str(tmp_path / "one.jsonl"))[0]) == 23


def test_what_was_judged_before_the_judge_failed_is_kept(tmp_path: Path) -> None:
    def fails(prompt: str, number: int) -> tuple[int, str]:
        return (503, "") if number > 30 else prefers_longer(prompt, number)

    with serve(fails) as server:
        config = judged(tmp_path, server)
        with pytest.raises(UsageError, match="answered 503"):
            main(config)
        # Of 30 answers, four lines of up to six may not have had all of theirs.
        kept = len(read(Path(f"{config.out}.partial"))) - 1
        assert kept >= 2
        server.behave = prefers_longer
        asked = len(server.requests)
        main(config)
        assert len(server.requests) - asked <= (24 - kept) * 6
        main(judged(tmp_path, server, "whole.jsonl"))
    assert Path(config.out).read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_person_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "responses.jsonl", [record([f"a{n}", f"b{n}"], id=str(n)) for n in range(4)])

    def rank(name: str, answers: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
        main(RankConfig(responses=str(path), out=str(tmp_path / name), by=By.person, person="eve", seed=3))

    rank("whole.jsonl", "1 2\ns\n1=2\n2 1\n")
    with pytest.raises(PreemptedError, match="1 of 4 lines"):
        rank("parts.jsonl", "1 2\nq\n")
    with pytest.raises(PreemptedError, match="3 of 4 lines"):
        rank("parts.jsonl", "s\n1=2\n")
    rank("parts.jsonl", "2 1\n")
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [one["id"] for one in read(tmp_path / "whole.jsonl")] == ["0", "2", "3"]
    assert len(read_comparisons(str(tmp_path / "whole.jsonl"), ties="drop", on_bad="skip", max_bad_share=0.5)[0]) == 2
    with pytest.raises(PreemptedError):
        rank("other.jsonl", "")
    with pytest.raises(UsageError, match="other settings"):
        main(RankConfig(responses=str(path), out=str(tmp_path / "other.jsonl"), by=By.person, person="adam", seed=3))


def test_the_command_line(tmp_path: Path) -> None:
    write(tmp_path / "responses.jsonl", sums(6))
    files = [f"responses={tmp_path}/responses.jsonl#4", f"out={tmp_path}/new/out.jsonl"]
    result = succeeded(python("scripts/rank.py", *files, "by=checker", "checker=number"))
    assert "4 lines: all_wrong 1, ranked 3" in result.stderr
    assert len(read(tmp_path / "new" / "out.jsonl")) == 3
    for arguments, code, expected in (
        ([*files, "by=checker", "checker=number"], 2, "exists"),
        (files, 2, "by must be given"),
        ([*files, "by=judge"], 2, "judge.url must be given"),
        ([*files[:1], f"out={tmp_path}/other.jsonl", "by=checker", "checker=calls"], 3, "bad_call"),
    ):
        result = python("scripts/rank.py", *arguments)
        assert (result.returncode, expected in result.stderr) == (code, True), result.stderr


def test_a_wrong_key_ends_with_an_exit_code(tmp_path: Path) -> None:
    with serve(lambda prompt, number: (401, "")) as server:
        config = judged(tmp_path, server)
        arguments = [f"judge.url={config.judge.url}", "judge.model=m", "judge.key_env=KEY_OF_TEST", f"judge.allow=['{server.place}']"]
        files = [f"responses={config.responses}", f"out={config.out}"]
        result = python("scripts/rank.py", *files, "by=judge", *arguments, KEY_OF_TEST="secret-9")
    assert result.returncode == 2
    assert "does not accept the key in $KEY_OF_TEST" in result.stderr
    assert set(server.keys) == {"Bearer secret-9"}
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert "secret" not in written + result.stderr + result.stdout


def lines_of(path: Path) -> int:
    """Lines of a file that may go at any time."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_random_kills_change_nothing(tmp_path: Path) -> None:
    """The judge answers after some milliseconds; the job is killed after a random number of lines more, and started again."""

    def slow(prompt: str, number: int) -> tuple[int, str]:
        time.sleep(0.01)
        return prefers_longer(prompt, number)

    rng = random.Random(1)
    kills = 0
    with serve(slow) as server:
        config = judged(tmp_path, server)
        partial, out = Path(f"{config.out}.partial"), Path(config.out)
        settings = [f"judge.url={config.judge.url}", "judge.model=m", f"judge.allow=['{server.place}']", "judge.concurrency=2"]
        command = [
            sys.executable,
            str(REPOSITORY / "scripts/rank.py"),
            f"responses={config.responses}",
            f"out={out}",
            "by=judge",
            *settings,
        ]
        while not out.exists() or partial.exists():
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            wanted = lines_of(partial) + rng.randint(1, 6)
            while process.poll() is None and lines_of(partial) < wanted:
                time.sleep(0.001)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            _, told = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), told.decode()
        main(judged(tmp_path, server, "whole.jsonl"))
    assert kills >= 2
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    found = lineage.load(out)
    assert found is not None
    assert lineage.hash_files(out)["out.jsonl"]["sha256"] == found.files["out.jsonl"].sha256


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    from moss_train.pm.rank import Partial

    path = tmp_path / "out.jsonl.partial"
    with Partial(path, {"by": "x"}, 1, wait_for_disk=False), pytest.raises(UsageError, match="another process"):
        Partial(path, {"by": "x"}, 1, wait_for_disk=False)
    assert json.loads(path.read_text(encoding="utf-8"))["settings"] == {"by": "x"}


def test_a_damaged_partial_is_told(tmp_path: Path) -> None:
    config = checker(tmp_path)
    partial = Path(f"{config.out}.partial")
    partial.write_text('{"settings": {}}\n{"index": 99, "name": "ranked"}\n', encoding="utf-8")
    with pytest.raises(MossTrainError, match="damaged"):
        main(config)
