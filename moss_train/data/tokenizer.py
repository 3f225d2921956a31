"""Byte-level BPE with MOSS's control tokens, reserved tag tokens, and encoding from which no text can obtain a control id.

Stock classes that open a published MOSS directory leave four of its five controls `special=False`, and such a token is matched in text
whatever the caller asks for. Here every control and every reserved tag is `special=True`, whitespace runs are `special=False` (they are
text), and the backend runs with `encode_special_tokens=True`: `<eom>` written in a text becomes the ordinary tokens of those letters.

Layout of ids, lowest first (MOSS-003: 106029 + 38 + 5 = 106072 in use, tags from 106072, 107008 rows):

    byte-level BPE | <|endoftext|> | whitespace runs | <eoh> <eom> <eot> <eoc> <eor> | reserved tags | unused rows up to vocab_size
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from moss_train.data.backend import Description, added_token, canonical, describe, read_declared_rows, read_description, token_to_bytes
from moss_train.errors import DataError

logger = logging.getLogger(__name__)

ENDOFTEXT = "<|endoftext|>"
# In MOSS's order: these are its ids 106067 to 106071.
CONTROL_TOKENS = ("<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>")
# Ids that preference tags take over later, so that no embedding has to grow for them.
RESERVED_TAG = "<|reserved_{}|>"
RESERVED_TAG_PATTERN = re.compile(r"<\|reserved_(\d+)\|>")
RESERVED_TAGS = 16
# What a stock tokenizer reports as its limit; published MOSS and CodeGen both say 2048.
MODEL_MAX_LENGTH = 2048
# Rows of a new model's embedding are padded to this multiple (matrix tiles; divides among ranks).
PAD_MULTIPLE = 64
# (ids in use before anything is added here, id of <|endoftext|>) -> rows of the published models with that vocabulary: moss-moon-003, and
# CodeGen in all sizes. Used only where the directory has no config.json.
PUBLISHED_ROWS = {(106072, 106028): 107008, (106067, 106028): 107008, (50295, 50256): 51200}


class MossTokenizer:
    """Text to ids and back, exactly: `decode(encode(text)) == text` for every text without lone surrogates.

    Made by `load` or `train`; the constructor takes a finished description.

    Args:
        description: What `tokenizer.json` holds, with all six controls among the added tokens.
        vocab_size: Rows of the model's embedding, at least as many as ids in use.
        notes: What was added or decided while loading, one sentence each, for the user's log.

    Attributes:
        control_ids: Id by spelling of the six controls; also as `eoh eom eot eoc eor endoftext`.
        tag_ids: Ids of the reserved tags in the order of their numbers.
        special_ids: All ids that no text can yield: controls, tags, and special tokens of a foreign file.
        newline: Id of the newline that follows every control of a dialogue.
        size: Ids in use. vocab_size: Rows of the embedding.
        fingerprint: sha256 of the canonical description. The number of rows is the model's and not part of it.
    """

    def __init__(self, description: Description, vocab_size: int, notes: Sequence[str] = ()):
        description = canonical(description)
        self._json = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
        self._backend: Tokenizer = Tokenizer.from_str(self._json)
        # Not stored in tokenizer.json, and lost when a backend is copied: this is what keeps text from becoming a control.
        self._backend.encode_special_tokens = True
        self.notes = tuple(notes)
        self.vocab_size = vocab_size
        self._added = {entry["content"]: int(entry["id"]) for entry in description["added_tokens"]}
        self.control_ids: dict[str, int] = {name: self._added[name] for name in (*CONTROL_TOKENS, ENDOFTEXT)}
        self.eoh, self.eom, self.eot, self.eoc, self.eor, self.endoftext = self.control_ids.values()
        self.tag_ids = _tag_ids(self._added)
        self.special_ids = frozenset(int(entry["id"]) for entry in description["added_tokens"] if entry["special"])
        self.size = self._backend.get_vocab_size(with_added_tokens=True)
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()
        self.newline = self._check()

    # ------------------------------------------------------------------ making

    @classmethod
    def load(cls, directory: str | Path, *, vocab_size: int | None = None, reserved_tags: int | None = None) -> MossTokenizer:
        """Open a directory with `tokenizer.json`, or `vocab.json` and `merges.txt` (and `added_tokens.json`). Nothing in it is executed.

        Controls the directory lacks get the first free ids inside the padded vocabulary, then tags follow as far as there is room; `notes`
        (and the log) say what was added.

        Args:
            directory: A model or tokenizer directory.
            vocab_size: Rows of the model; by default `vocab_size` of the directory's `config.json`, else the published model's rows where
                the vocabulary is MOSS's or CodeGen's, else the ids in use rounded up to a multiple of 64.
            reserved_tags: How many tag tokens to have at least; by default those the directory holds, 16 where it holds none.

        Raises:
            DataError: Files are missing or unreadable, it is not byte-level BPE, or the rows have no room for the controls.
        """
        description, source = read_description(Path(directory))
        rows = vocab_size if vocab_size is not None else read_declared_rows(Path(directory))
        return cls._complete(description, rows, reserved_tags, str(source))

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, reserved_tags: int = RESERVED_TAGS, pad_multiple: int = PAD_MULTIPLE
    ) -> MossTokenizer:
        """Learn a vocabulary from texts; the same texts in the same order always give the same tokenizer.

        Args:
            texts: Training text; a control spelled in it is learned as the ordinary text it is.
            vocab_size: Ids to use, everything counted: 256 bytes, merges, the six controls, the tags. Fewer where the texts hold too
                few merges.
            reserved_tags: Number of tag tokens.
            pad_multiple: The attribute `vocab_size` is the ids in use rounded up to this.
        """
        extra = 1 + len(CONTROL_TOKENS) + reserved_tags
        if vocab_size < 256 + extra:
            raise DataError(f"vocab_size={vocab_size} is too small: 256 bytes and {extra} special tokens need {256 + extra} at least.")
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - extra, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
        backend.train_from_iterator(texts, trainer)
        trained = json.loads(backend.to_str())["model"]
        return cls._complete(describe(trained["vocab"], trained["merges"]), None, reserved_tags, None, pad_multiple)

    @classmethod
    def _complete(
        cls, description: Description, rows: int | None, reserved_tags: int | None, source: str | None, pad_multiple: int = PAD_MULTIPLE
    ) -> MossTokenizer:
        """Make every control special, add the missing ones and the tags, settle the number of rows. `source` None: trained just now."""
        notes: list[str] = []
        added = {entry["content"]: entry for entry in description["added_tokens"]}
        used = {**description["model"]["vocab"], **{content: entry["id"] for content, entry in added.items()}}
        next_id = max(used.values()) + 1
        if rows is None:
            rows = PUBLISHED_ROWS.get((next_id, used.get(ENDOFTEXT, -1)))

        missing = [name for name in (ENDOFTEXT, *CONTROL_TOKENS) if name not in used]
        if rows is not None and next_id + len(missing) > rows:
            raise DataError(
                f"{source}: {next_id} ids are in use and {len(missing)} control tokens are missing ({' '.join(missing) or 'none'}), but "
                f"the model has only {rows} rows. Extend its vocabulary first, or start from one with spare rows (CodeGen: 905 of 51200)."
            )
        for name in missing:
            used[name] = next_id
            next_id += 1
        if missing and source is not None:
            notes.append(f"{source}: control tokens it lacked took free ids: " + ", ".join(f"{name}={used[name]}" for name in missing))
        for name in (ENDOFTEXT, *CONTROL_TOKENS):
            added[name] = added_token(used[name], name, special=True)

        for content in [content for content in added if RESERVED_TAG_PATTERN.fullmatch(content)]:
            added[content] = added_token(used[content], content, special=True)
        present = sum(RESERVED_TAG_PATTERN.fullmatch(content) is not None for content in added)
        wanted = max(present, (present or RESERVED_TAGS) if reserved_tags is None else reserved_tags)
        having = wanted if rows is None else min(wanted, present + rows - next_id)
        for index in range(present, having):
            name = RESERVED_TAG.format(index)
            added[name] = added_token(next_id, name, special=True)
            next_id += 1
        if having < wanted:
            notes.append(f"{source}: {rows} rows have room for {having} of {wanted} reserved tags")

        for note in notes:
            logger.info("%s", note)
        description = {**description, "added_tokens": list(added.values())}
        return cls(description, rows if rows is not None else -(-next_id // pad_multiple) * pad_multiple, notes)

    def _check(self) -> int:
        """The promises the rest of the package builds on, tested on this very tokenizer; returns the id of the newline."""
        if self.size > self.vocab_size:
            raise DataError(f"the tokenizer uses {self.size} ids, the model has only {self.vocab_size} rows; extend its vocabulary first.")
        for content, token_id in self._added.items():
            # The backend numbers added tokens itself, and where that differs from the file it only logs a warning.
            if self._backend.token_to_id(content) != token_id:
                given = self._backend.token_to_id(content)
                raise DataError(
                    f"added token {content!r} has id {token_id} in the file, but the backend gives it {given}: "
                    "ids of added tokens must follow the vocabulary without gaps."
                )
            if not self.special_ids.isdisjoint(self.encode(f"{content}a{content} {content}\n")):
                raise DataError(f"the text {content!r} yields a control id: merges of this vocabulary spell it. Use another tokenizer.")
        (newline,) = self.encode("\n")
        return newline

    @property
    def description(self) -> Description:
        """A copy of what `tokenizer.json` holds."""
        description: Description = json.loads(self._json)
        return description

    # ------------------------------------------------------------------ text and ids

    def tag_of(self, level: int) -> int:
        """Id of the tag that says how good a reply is.

        Args:
            level: 1 for the worst.

        Raises:
            DataError: There is no tag for it.
        """
        if not 1 <= level <= len(self.tag_ids):
            raise DataError(f"level {level} has no tag: this tokenizer has tags for the levels 1 to {len(self.tag_ids)}.")
        return self.tag_ids[level - 1]

    def never_written(self, rows: int) -> list[int]:
        """Ids that have no place in a reply, ascending: tags and other special tokens but the controls, and rows without a token.

        Args:
            rows: Of the model.
        """
        return sorted((self.special_ids - set(self.control_ids.values())) | set(range(self.size, rows)))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. No text yields the id of a control or a tag, and nothing is added at either end."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError(_explain_unencodable(text)) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores (RAYON_NUM_THREADS limits them)."""
        try:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            # The batch does not say which one it was.
            return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], skip_controls: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 (a character cut in two) become U+FFFD; unused rows have no text.

        Args:
            ids: Token ids.
            skip_controls: Leave out controls and tags.
        """
        return self._backend.decode(list(ids), skip_special_tokens=skip_controls)

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """`decode` for many at once, controls kept."""
        return self._backend.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for, empty for an unused row. Concatenated over ids they are the UTF-8 of the text."""
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else token_to_bytes(token, added=token in self._added)

    @property
    def text_description(self) -> Description:
        """What text alone can reach: the content of a `tokenizer.json` without special tokens, for encoders that know no other switch."""
        description = self.description
        description["added_tokens"] = [entry for entry in description["added_tokens"] if not entry["special"]]
        return description

    @property
    def special_contents(self) -> list[str]:
        """The spellings of `special_ids`."""
        return [content for content, token_id in self._added.items() if token_id in self.special_ids]

    # ------------------------------------------------------------------ files

    def save(self, directory: str | Path) -> list[Path]:
        """Write `tokenizer.json` and `tokenizer_config.json`, which stock `AutoTokenizer` opens without remote code, with the same ids.

        `PreTrainedTokenizerFast` is the class name that transformers 4 and 5 both take to mean "tokenizer.json as it is", also beside a
        config.json of `model_type: codegen`, whose own class would rebuild the backend. Such a tokenizer turns `<eoh>` in a prompt into the
        control, as the published MOSS snippets expect, unless called with `split_special_tokens=True`.

        Returns:
            The files written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tags = [content for content in self._added if RESERVED_TAG_PATTERN.fullmatch(content)]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": ENDOFTEXT,
            "eos_token": "<eom>",
            "unk_token": ENDOFTEXT,
            "pad_token": ENDOFTEXT,
            "additional_special_tokens": [*CONTROL_TOKENS, *tags],
            "clean_up_tokenization_spaces": False,
            "model_max_length": MODEL_MAX_LENGTH,
            "padded_vocab_size": self.vocab_size,
        }
        # The backend spells what json.dumps(indent=2) does, several times faster.
        contents = {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        }
        for name, text in contents.items():
            (folder / name).write_text(f"{text}\n", encoding="utf-8")
        return [folder / name for name in contents]

    def __reduce__(self) -> tuple[Any, ...]:
        return MossTokenizer, (json.loads(self._json), self.vocab_size, self.notes)

    def __repr__(self) -> str:
        numbers = f"size={self.size}, vocab_size={self.vocab_size}, tags={len(self.tag_ids)}"
        return f"MossTokenizer({numbers}, fingerprint={self.fingerprint[:12]})"


def _tag_ids(added: dict[str, int]) -> list[int]:
    """Ids of the reserved tags, in the order of their numbers."""
    numbered = [(int(match[1]), token_id) for content, token_id in added.items() if (match := RESERVED_TAG_PATTERN.fullmatch(content))]
    return [token_id for _, token_id in sorted(numbered)]


def _explain_unencodable(text: object) -> str:
    """Why a value cannot be encoded: it is not text, or half of a surrogate pair is missing."""
    if not isinstance(text, str):
        return f"text expected, found {type(text).__name__}: {text!r:.60}"
    position = next(i for i, character in enumerate(text) if 0xD800 <= ord(character) <= 0xDFFF)
    return (
        f"lone surrogate U+{ord(text[position]):04X} at character {position}, after {text[max(0, position - 20) : position]!r}: "
        "this is not text; repair the program that wrote it (it cut a character in two)."
    )
