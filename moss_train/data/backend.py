"""Descriptions of a byte-level BPE backend: read from any directory of the CodeGen/MOSS family, made canonical, checked.

A description is the content of a `tokenizer.json` as a dictionary. Everything goes through it, because the `tokenizers` library can neither
change whether a token is special nor choose its id once the token has been added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_train.errors import DataError

Description = dict[str, Any]

# An entry of added_tokens.json carries no flags. One that looks like markup must not come from text; blanks and words are text.
_MARKUP = re.compile(r"<\S.*>|\[[A-Z]+\]")


def _byte_units() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: character -> byte. Printable Latin-1 stands for itself, the rest for U+0100 upwards."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    units = {chr(byte): byte for byte in plain}
    for byte in range(256):
        if byte not in plain:
            units[chr(256 + len(units) - len(plain))] = byte
    return units


BYTE_UNITS = _byte_units()


def token_to_bytes(token: str, added: bool) -> bytes:
    """The bytes a token stands for: its characters' units, or the text itself for an added token."""
    return token.encode() if added else bytes(BYTE_UNITS[character] for character in token)


def added_token(token_id: int, content: str, special: bool) -> dict[str, Any]:
    """One entry of `added_tokens`; matched literally, never together with neighbouring blanks."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def describe(vocabulary: dict[str, int], merges: Sequence[Sequence[str]], added: Sequence[dict[str, Any]] = ()) -> Description:
    """Byte-level BPE with GPT-2's regular expression, nothing before or after it; vocabulary and added tokens in the order of their ids."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda entry: entry["id"]),
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": dict(byte_level),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }


def canonical(description: Description) -> Description:
    """The same description for the same tokenizer: only vocabulary, merges and added tokens are taken over.

    A foreign file's truncation, padding and post-processor go: they would cut rows or add tokens behind the renderer's back.
    """
    model = description["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    added = [added_token(entry["id"], entry["content"], bool(entry["special"])) for entry in description["added_tokens"]]
    return describe(model["vocab"], merges, added)


def read_description(folder: Path) -> tuple[Description, Path]:
    """The description a directory holds, and the file it came from.

    Raises:
        DataError: There is none, it cannot be read, or it is not of this family.
    """
    if (folder / "tokenizer.json").is_file():
        source = folder / "tokenizer.json"
        description = read_json(source)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        source = folder / "vocab.json"
        description = _describe_gpt2_files(folder)
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) if folder.is_dir() else "no such directory"
        raise DataError(
            f"{folder}: no tokenizer found; expected tokenizer.json, or vocab.json with merges.txt; found: {found or 'an empty folder'}. "
            "Set tokenizer.path to a directory that holds them."
        )
    _require_byte_level_bpe(description, source)
    return canonical(description), source


def read_declared_rows(folder: Path) -> int | None:
    """Rows of the model's embedding as the directory itself says: `config.json`, else what `MossTokenizer.save` noted."""
    for name, key in (("config.json", "vocab_size"), ("tokenizer_config.json", "padded_vocab_size")):
        if (folder / name).is_file():
            value = read_json(folder / name).get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a UTF-8 file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: a JSON object expected, found {type(value).__name__}")
    return value


def _require_byte_level_bpe(description: Description, source: Path) -> None:
    """Refuse what would break `decode(encode(text)) == text` or what keeps controls out of text."""
    problems = []
    model = description.get("model")
    if (
        not isinstance(model, dict)
        or model.get("type", "BPE") != "BPE"
        or not isinstance(model.get("vocab"), dict)
        or not isinstance(model.get("merges"), list)
    ):
        problems.append("its model is not a BPE with vocab and merges")
    else:
        missing = [unit for unit in BYTE_UNITS if unit not in model["vocab"]]
        if missing:
            problems.append(f"{len(missing)} of the 256 byte tokens are missing from the vocabulary (first: {missing[0]!r})")
        problems += [
            f"model.{option} is set"
            for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
            if model.get(option)
        ]
    if description.get("normalizer"):
        problems.append("it has a normalizer, which rewrites text")
    before = description.get("pre_tokenizer")
    before = before if isinstance(before, dict) else {}
    if before.get("type") != "ByteLevel" or before.get("add_prefix_space") or not before.get("use_regex", True):
        problems.append("its pre-tokenizer is not GPT-2's byte-level regular expression without a prefix space")
    if not isinstance(description.get("added_tokens"), list):
        problems.append("added_tokens is not a list")
    if problems:
        raise DataError(f"{source}: not a tokenizer of the CodeGen/MOSS family: {'; '.join(problems)}. Expected GPT-2's byte-level BPE.")


def _describe_gpt2_files(folder: Path) -> Description:
    """Description from vocab.json, merges.txt and, where present, added_tokens.json: GPT-2, CodeGen and MOSS directories."""
    vocabulary = read_json(folder / "vocab.json")
    merges = []
    # Not splitlines(): tokens contain characters it takes for line ends.
    for number, line in enumerate((folder / "merges.txt").read_text(encoding="utf-8").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or "".join(pair) not in vocabulary:
            where = f"{folder / 'merges.txt'}:{number}"
            raise DataError(f"{where}: {line!r} is not a merge of vocab.json; expected two tokens whose union is a token.")
        merges.append(pair)
    added = []
    if (folder / "added_tokens.json").is_file():
        for content, token_id in read_json(folder / "added_tokens.json").items():
            added.append(added_token(token_id, content, special=bool(_MARKUP.fullmatch(content))))
    return describe(vocabulary, merges, added)
