"""The tokenizer: exact, closed to forged controls, the same for everyone who opens its files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moss_train.data.tokenizer import CONTROL_TOKENS, ENDOFTEXT, MossTokenizer
from moss_train.errors import DataError
from tests.tokenizer_directories import WHITESPACE_RUNS, learn_merges, write_gpt2_files

SPELLINGS = [*CONTROL_TOKENS, ENDOFTEXT, "<|reserved_0|>", "<|reserved_15|>", "<|MOSS|>:", "<", "eom>", "|>", "    ", "\t\t", "\n"]
PIECES = st.one_of(st.sampled_from(SPELLINGS), st.text(st.characters(exclude_categories=("Cs",)), max_size=8))
ANY_TEXT = st.lists(PIECES, max_size=12).map("".join)


@pytest.fixture(scope="module", params=["small_tokenizer", "byte_tokenizer", "moss_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> MossTokenizer:
    return request.getfixturevalue(request.param)


@given(text=ANY_TEXT)
@settings(max_examples=400, deadline=None)
def test_no_text_yields_a_control_and_all_text_comes_back(tokenizer: MossTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]


def test_the_property_can_fail(moss_tokenizer: MossTokenizer) -> None:
    """The backend opened as anyone else would open it does yield controls: what the test above forbids is a real way to fail."""
    plain = Tokenizer.from_str(moss_tokenizer._backend.to_str())
    assert moss_tokenizer.eoh in plain.encode("a<eoh>b", add_special_tokens=False).ids


def test_whitespace_runs_of_a_published_directory_are_text(moss_tokenizer: MossTokenizer) -> None:
    assert moss_tokenizer.encode("x" + " " * 8 + "y")[1:-1] == [moss_tokenizer.endoftext + 1 + WHITESPACE_RUNS.index(" " * 8)]
    assert moss_tokenizer.special_ids == {*moss_tokenizer.control_ids.values(), *moss_tokenizer.tag_ids}


def test_moss_ids(tmp_path: Path) -> None:
    """The ids of the published MOSS-003 vocabulary: 106028 BPE entries, 43 added tokens, 107008 rows."""
    folder = write_gpt2_files(tmp_path, *learn_merges([], 256), entries=106028)
    loaded = MossTokenizer.load(folder)
    assert loaded.control_ids == {
        "<eoh>": 106067,
        "<eom>": 106068,
        "<eot>": 106069,
        "<eoc>": 106070,
        "<eor>": 106071,
        "<|endoftext|>": 106028,
    }
    assert loaded.encode(" " * 31) == [106029]
    assert loaded.encode("\t\t") == [106066]
    assert loaded.tag_ids == list(range(106072, 106088))
    assert (loaded.size, loaded.vocab_size, loaded.notes) == (106088, 107008, ())


def test_codegen_gets_controls_at_free_ids_and_says_so(tmp_path: Path) -> None:
    """CodeGen: 50257 + 38 ids of 51200 rows."""
    loaded = MossTokenizer.load(write_gpt2_files(tmp_path, *learn_merges([], 256), entries=50256, controls=False))
    assert [loaded.control_ids[name] for name in CONTROL_TOKENS] == list(range(50295, 50300))
    assert loaded.endoftext == 50256
    assert loaded.tag_ids == list(range(50300, 50316))
    assert loaded.vocab_size == 51200
    assert len(loaded.notes) == 1
    assert "<eom>=50296" in loaded.notes[0]


def test_rows_come_from_the_model_beside_it(tmp_path: Path) -> None:
    folder = write_gpt2_files(tmp_path, *learn_merges([], 256), controls=False)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 256 + 1 + 38 + 5 + 3}))
    loaded = MossTokenizer.load(folder)
    assert loaded.vocab_size == loaded.size == 303
    assert len(loaded.tag_ids) == 3
    assert "room for 3 of 16 reserved tags" in loaded.notes[1]

    (folder / "config.json").write_text(json.dumps({"vocab_size": 299}))
    with pytest.raises(DataError, match="only 299 rows"):
        MossTokenizer.load(folder)
    assert MossTokenizer.load(folder, vocab_size=400).vocab_size == 400


def test_training_is_deterministic_and_counts_everything(texts: list[str]) -> None:
    one, two = MossTokenizer.train(texts, 400), MossTokenizer.train(iter(texts), 400)
    assert one.fingerprint == two.fingerprint
    assert one.size == 400
    assert one.vocab_size == 448
    assert one.tag_ids == list(range(384, 400))
    assert MossTokenizer.train(texts[:1], 400).fingerprint != one.fingerprint
    assert MossTokenizer.train(["ab"], 4000).size < 300, "no more merges than the text holds"
    with pytest.raises(DataError, match="too small"):
        MossTokenizer.train(texts, 100)


def test_files_and_pickles_give_the_same_tokenizer(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for copy in (MossTokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert (copy.vocab_size, copy.size, copy.control_ids, copy.tag_ids) == (
            tokenizer.vocab_size,
            tokenizer.size,
            tokenizer.control_ids,
            tokenizer.tag_ids,
        )
        assert copy.notes == ()
        assert copy.special_ids.isdisjoint(copy.encode("<eom>"))


def test_controls_that_another_program_saved_as_text_are_special_again(moss_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    moss_tokenizer.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    for entry in description["added_tokens"]:
        entry["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert MossTokenizer.load(tmp_path).fingerprint == moss_tokenizer.fingerprint


def test_stock_transformers_opens_it_with_the_same_ids(tokenizer: MossTokenizer, texts: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    ids = {"bos_token_id": tokenizer.endoftext, "eos_token_id": tokenizer.eom}
    config = {"model_type": "codegen", "vocab_size": tokenizer.vocab_size, **ids}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stock = AutoTokenizer.from_pretrained(tmp_path)
    samples = [*texts, *WHITESPACE_RUNS, "a , b . c 's don't ?", "�\0\x1b", "é e\u0301 🙂🏽", "x" + " " * 40 + "\t" * 12 + "\n\n"]
    for text in samples:
        assert stock(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
        assert stock.decode(stock(text).input_ids) == text, "decoding must not tidy up blanks"
    prompt = "<|Human|>: hi<eoh>\n<|MOSS|>:"
    assert stock(prompt).input_ids == [
        *tokenizer.encode("<|Human|>: hi"),
        tokenizer.eoh,
        tokenizer.newline,
        *tokenizer.encode("<|MOSS|>:"),
    ], "the published way to prompt spells the control"
    assert stock.decode([tokenizer.eom, tokenizer.tag_ids[0], *tokenizer.encode("a")], skip_special_tokens=True) == "a"
    assert (stock.eos_token_id, stock.bos_token_id, stock.pad_token_id, stock.unk_token_id) == (tokenizer.eom, *[tokenizer.endoftext] * 3)
    assert stock.model_max_length == 2048
    assert stock.clean_up_tokenization_spaces is False, "transformers 4 tidies up by this setting"
    assert type(stock).__name__ in ("TokenizersBackend", "PreTrainedTokenizerFast"), (
        "tokenizer.json as it is, not rebuilt by a model's class"
    )
    assert len(stock) == tokenizer.size


def break_normalizer(description: dict[str, Any]) -> None:
    description["normalizer"] = {"type": "NFC"}


def break_model(description: dict[str, Any]) -> None:
    description["model"]["type"] = "Unigram"


def break_bytes(description: dict[str, Any]) -> None:
    del description["model"]["vocab"]["Ġ"]


def break_prefix(description: dict[str, Any]) -> None:
    description["pre_tokenizer"]["add_prefix_space"] = True


def break_ids(description: dict[str, Any]) -> None:
    description["added_tokens"][-1]["id"] += 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_normalizer, "normalizer"),
        (break_model, "not a BPE"),
        (break_bytes, "256 byte tokens"),
        (break_prefix, "prefix space"),
        (break_ids, "without gaps"),
    ],
)
def test_what_would_break_promises_is_refused(small_tokenizer: MossTokenizer, tmp_path: Path, change: Any, message: str) -> None:
    small_tokenizer.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=message):
        MossTokenizer.load(tmp_path)


def test_a_merge_that_spells_a_special_token_is_refused(tmp_path: Path) -> None:
    """The regular expression cuts `<eoh>` in three, so no merge can spell it; a foreign special token without letters could be spelled."""
    spelling = MossTokenizer.train(["??? ??? ???"] * 9, 400)
    (token_id,) = spelling.encode("???")
    spelling.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["added_tokens"].append({**description["added_tokens"][0], "content": "???", "id": token_id})
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"'\?\?\?' yields a control id"):
        MossTokenizer.load(tmp_path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        MossTokenizer.load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"expected tokenizer\.json, or vocab\.json"):
        MossTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        MossTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write_gpt2_files(tmp_path, *learn_merges(["ab ab ab"], 260))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nq z\n")
    with pytest.raises(DataError, match=r"merges\.txt:3"):
        MossTokenizer.load(tmp_path)


def test_what_is_not_text_is_refused(small_tokenizer: MossTokenizer) -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D83D at character 2"):
        small_tokenizer.encode("ab\ud83dcd")
    with pytest.raises(DataError, match="lone surrogate"):
        small_tokenizer.encode_batch(["fine", "\udc00"])
    with pytest.raises(DataError, match="text expected"):
        small_tokenizer.encode(3)  # type: ignore[arg-type]


def test_cut_characters_and_unused_rows_decode_without_failing(small_tokenizer: MossTokenizer, byte_tokenizer: MossTokenizer) -> None:
    assert byte_tokenizer.decode(byte_tokenizer.encode("区")[:2]) == "�"
    assert small_tokenizer.decode([small_tokenizer.eom], skip_controls=True) == ""
    assert small_tokenizer.token_bytes(small_tokenizer.vocab_size + 5) == b""
