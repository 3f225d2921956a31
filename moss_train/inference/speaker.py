"""A model that can be talked to: loaded, with its tokenizer, its decoder and its tools."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage, lineage_verify
from moss_train.artifacts.export import DTYPES
from moss_train.config import Plugin
from moss_train.cores import threads_per_rank
from moss_train.data.dialogue import Dialogue, Turn, meta_instruction
from moss_train.data.records import PROBLEMS_SHOWN
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError, DataError, OutOfMemoryError, UsageError
from moss_train.inference import memory
from moss_train.inference.config import DeviceMap, SpeakerConfig
from moss_train.inference.decoder import FEWEST_SLOTS, Decoder, Task, streams_of
from moss_train.inference.plugins import make_toolbox
from moss_train.inference.sampling import Sampling
from moss_train.inference.transcript import Transcript
from moss_train.inference.turns import Reply, Style, check_room, write_turn
from moss_train.model.attention import resolve_backend
from moss_train.model.codegen import CodeGenLM
from moss_train.model.linear import widens
from moss_train.model.loading import load_model, packing_of, read_model_config, stored_dtype

_log = logging.getLogger("moss_train")


def training_details(directory: Path) -> dict[str, Any]:
    """What the lineage of a model tells of the rows it was trained on; empty for a directory made elsewhere."""
    details: dict[str, Any] = (lineage.read(directory) or {}).get("details") or {}
    return details


def default_system(directory: Path, thoughts: bool, plugins: list[Plugin]) -> str:
    """The meta instruction of a prompt that names none.

    With plugins: MOSS's, with their switches on. Else the one the model was trained with most, as its lineage tells, or MOSS's.
    """
    if plugins:
        return meta_instruction(**({plugin.value: True for plugin in plugins} | ({"inner_thoughts": True} if thoughts else {})))
    text: str = training_details(directory).get("meta_instruction") or meta_instruction()
    return text.replace("- Inner thoughts: disabled.", "- Inner thoughts: enabled.") if thoughts else text


def asked_level(tag: str, details: Mapping[str, Any], tokenizer: MossTokenizer) -> int | None:
    """The level whose tag stands before what the model writes; None: no tag.

    Args:
        tag: `auto`, `best`, `none`, or a number.
        details: Of the training, as `training_details` gives them: `levels` are those the model was trained with.
        tokenizer: That of the model.

    Raises:
        UsageError: The model has no tags, or not this one.
    """
    known = sorted(int(level) for level in details.get("levels") or ())
    if tag == "none" or (tag == "auto" and not known):
        return None
    if tag in ("auto", "best"):
        if not known:
            raise UsageError(f"tag={tag}: the lineage of the model names no levels it was trained with; give a number, or tag=none")
        return known[-1]
    return _level_of_number("tag", tag, known, tokenizer)


def guidance_levels(
    config: SpeakerConfig, level: int | None, details: Mapping[str, Any], tokenizer: MossTokenizer
) -> tuple[int | None, ...]:
    """The one level that guidance leads away from, None being no tag; none at all where guidance is off.

    Args:
        config: Settings.
        level: What is asked for, as `asked_level` gives it.
        details: Of the training, as `training_details` gives them.
        tokenizer: That of the model.

    Raises:
        UsageError: Nothing is asked for, or both prompts would be the same, or the model does not have this tag.
    """
    if config.guidance == 1:
        return ()
    given, name = f"guidance={config.guidance}", config.guidance_from
    known = sorted(int(one) for one in details.get("levels") or ())
    if level is None:
        raise UsageError(
            f"{given}: no tag is asked for, since the lineage of the model names no levels it was trained with; there is nothing to be led "
            "to. Give tag=NUMBER, or guidance=1"
        )
    if name == "none":
        if details.get("tag_dropout") == 0:
            _log.warning(f"{given}: the model was trained with data.tag_dropout=0; it may not know prompts without a tag")
        return (None,)
    if name in ("worst", "opposite") and not known:
        raise UsageError(f"guidance_from={name}: the lineage of the model names no levels it was trained with; give a number, or none")
    if name == "opposite":
        return (_opposite(level, known),)
    away_from = known[0] if name == "worst" else _level_of_number("guidance_from", name, known, tokenizer)
    if away_from == level:
        raise UsageError(
            f"{given}: tag={config.tag} and guidance_from={name} are both level {level} of this model, so there is nothing to be led away "
            "from; give two levels, guidance_from=none, or guidance=1"
        )
    return (away_from,)


def _opposite(level: int, known: Sequence[int]) -> int | None:
    """The worst or the best of ascending levels, whichever is farther from one; no tag for the middle."""
    above, below = level - known[0], known[-1] - level
    return None if above == below else known[0] if above > below else known[-1]


def _level_of_number(key: str, text: str, known: list[int], tokenizer: MossTokenizer) -> int:
    """A level that is given as a number, which the model should know."""
    level = int(text)
    if level > len(tokenizer.tag_ids):
        raise UsageError(f"{key}={text}: the tokenizer has tags for the levels 1 to {len(tokenizer.tag_ids)}")
    if level not in known:
        levels = f"the levels {', '.join(map(str, known))}" if known else "no levels, as far as its lineage tells"
        _log.warning(f"{key}={text}: the model was trained with {levels}; this tag says nothing to it")
    return level


class Speaker:
    """Writes replies with one model.

    Args:
        config: Settings.
        batch_size: Replies at once.
        share_prompts: Whether dialogues come in groups of equal ones, each of which is then read once.

    Raises:
        CheckpointError: The model cannot be loaded, or its tokenizer does not fit it.
        UsageError: It does not have the tags that are asked for.
        OutOfMemoryError: It needs more memory than there is.
    """

    def __init__(self, config: SpeakerConfig, batch_size: int, share_prompts: bool = False):
        self.config = config
        directory = Path(config.model)
        if not config.unverified:
            # Sizes and the record; reading every byte of 33 GB before a question is for `lineage verify`.
            lineage_verify.require(directory, "model", "unverified=true", _log.debug, reads=False)
        self.device = device_of_rank()
        model_config = read_model_config(directory)
        dtype = DTYPES.get(config.dtype.value) or fitting_dtype(stored_dtype(directory, config.allow_pickle), self.device)
        # What is asked for is refused before a model of many gigabytes is loaded.
        self.tokenizer = MossTokenizer.load(directory)
        details = training_details(directory)
        self._config, self._details = config, details
        self.ask_for(asked_level(config.tag, details, self.tokenizer))
        on_cpu, streams = self.device.type == "cpu", streams_of(config.guidance)
        slots = -(-batch_size * streams // FEWEST_SLOTS) * FEWEST_SLOTS if on_cpu else batch_size * streams
        slots += share_prompts * streams
        packing = packing_of(directory)
        self.memory = memory.predict(model_config, dtype, slots, eager=on_cpu, packing=packing)
        _log.info(self.memory.describe(slots, model_config.n_positions))
        spread = "auto" if config.device_map is DeviceMap.auto else None
        free = memory.available(self.device, spread is not None)
        if self.memory.weights > free and spread is None:
            raise OutOfMemoryError(
                f"the weights of {directory} take {self.memory.weights / memory.GIB:.1f} GiB as {dtype}, {free / memory.GIB:.1f} GiB are "
                f"free on {self.device.type}; take a smaller number format (dtype=bf16) or, with GPUs, device_map=auto"
            )
        if self.memory.total > free:
            _log.warning(f"{free / memory.GIB:.1f} GiB are free: long rows may not fit; a smaller batch_size takes less")
        model = load_model(directory, dtype=dtype, allow_pickle=config.allow_pickle, device_map=spread)
        self.model: CodeGenLM = (model if spread else model.to(self.device)).eval()
        rows = self.model.config.vocab_size
        if self.tokenizer.size > rows:
            raise CheckpointError(
                f"{directory}: the tokenizer uses {self.tokenizer.size} ids, the model has {rows} rows; they do not match"
            )
        backend, _ = resolve_backend(config.attention.value, self.model.device, dtype, self.model.config.n_embd // self.model.config.n_head)
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.repetition_penalty, config.guidance)
        controls = set(self.tokenizer.control_ids.values()) | {self.tokenizer.endoftext}
        forbidden = self.tokenizer.never_written(rows)
        self.decoder = Decoder(self.model, controls, forbidden, sampling, config.seed, batch_size, backend, share_prompts)
        if on_cpu and self.decoder.cache.slots > slots:
            # Which rows a processor's products are made of is known only now.
            self.memory = memory.predict(model_config, dtype, self.decoder.cache.slots, eager=on_cpu, packing=packing)
            _log.info(f"on this processor: {self.memory.describe(self.decoder.cache.slots, model_config.n_positions)}")
        if on_cpu and not self.decoder.exact:
            _log.warning("products on this machine depend on how many rows they are made of: another batch_size can change a reply")
        tools = config.tools
        self.toolbox = make_toolbox(
            search_url=tools.search_url, image_url=tools.image_url, image_directory=Path(tools.image_directory), allow=tools.allow
        )
        # A turn should look like those trained on. Without a lineage it is the form published for the plain model: no middle segments.
        plain = Style.empty if details.get("middle_segments") else Style.plain
        self.style = Style.thoughts if config.writes_thoughts else plain

    def ask_for(self, level: int | None) -> None:
        """From now on asks for a level, or for none, and leads away from what belongs to that.

        Raises:
            UsageError: With guidance: None, or the level that is led away from.
        """
        self.level = level
        self.away_from = guidance_levels(self._config, level, self._details, self.tokenizer)

    def begin(self, meta_instruction: str) -> Transcript:
        """A transcript without a turn."""
        return Transcript(self.tokenizer, meta_instruction, self.level, self.away_from)

    def transcript(self, dialogue: Dialogue) -> Transcript:
        """A dialogue as far as it goes: of the last turn the human part alone."""
        transcript = self.begin(dialogue.meta_instruction)
        for turn in dialogue.turns[:-1]:
            transcript.begin(turn)
        transcript.begin(Turn(human=dialogue.turns[-1].human))
        return transcript

    def turn(self, transcript: Transcript, first_number: int = 1) -> Task[Reply]:
        """The task that writes the last turn of a transcript."""
        toolbox = self.toolbox if self.config.tools.run else None
        positions = self.model.config.n_positions
        return write_turn(transcript, self.style, self.config.max_new_tokens, positions, toolbox, first_number)

    def check(self, dialogues: Iterable[Dialogue]) -> None:
        """Refuses dialogues whose question leaves no room for a reply, before any time is spent on others.

        Raises:
            DataError: With the first of them.
        """
        positions, most = self.model.config.n_positions, self.config.max_new_tokens
        problems = []
        for dialogue in dialogues:
            problem = check_room(self.transcript(dialogue), self.style, most, positions)
            if problem is not None:
                problems.append(f"{dialogue.origin}: {problem}")
        if problems:
            more = [f"... and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
            raise DataError("\n".join([*problems[:PROBLEMS_SHOWN], *more]))

    def reply_all(self, dialogues: Iterable[tuple[int, Dialogue]]) -> Iterator[tuple[int, Reply]]:
        """Replies to numbered dialogues, in the order in which they end."""
        return self.decoder.run((number, self.turn(self.transcript(dialogue))) for number, dialogue in dialogues)


def device_of_rank() -> torch.device:
    """The GPU of this rank, or the CPU, whose cores the ranks of a machine share."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    torch.set_num_threads(threads_per_rank())
    return torch.device("cpu")


def fitting_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The stored number format, or float32 where a processor can only pretend to multiply it."""
    slow = device.type == "cpu" and (dtype == torch.float16 or widens(torch.empty(0, dtype=dtype)))
    return torch.float32 if slow else dtype
