"""Settings of generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from moss_train.config import Attention, ExportDtype, Plugin


class DeviceMap(StrEnum):
    """Where a model is put."""

    single = "single"
    """On one GPU, of this rank, or on the CPU where there is none."""
    auto = "auto"
    """Its layers spread over all GPUs, and the CPU beyond them."""


@dataclass
class ToolsConfig:
    """Tools that a reply may call. The calculator and the equation solver need nothing."""

    run: bool = True
    """Run the calls that a model with inner thoughts writes; else their results are None."""
    search_url: str | None = None
    """A search endpoint, such as `scripts/search_server.py`."""
    image_url: str | None = None
    """An endpoint that draws."""
    image_directory: str = "images"
    """Where drawn images are saved."""
    allow: list[str] = field(default_factory=list)
    """Endpoints that are not on the public internet, as `host:port`; all others of that kind are refused."""


TAGS = ("auto", "best", "none")
AWAY_FROM = ("none", "worst", "opposite")


def _is_level(text: str) -> bool:
    """Whether it is a whole number from 1 up."""
    return text.isascii() and text.isdecimal() and int(text) > 0


@dataclass
class SpeakerConfig:
    """A model that speaks, what it is asked, and how it answers: what `scripts/generate.py` and `scripts/sample.py` share."""

    model: str = "???"
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory."""
    prompts: str | None = None
    """A file of questions: a line each, or JSONL with the key `prompt`."""
    dialogue: str | None = None
    """A file of dialogues in any training layout; the reply of the last turn of each is generated anew. `FILE#N` takes the first N."""
    system: str | None = None
    """Meta instruction for questions; by default the one the model was trained with most. An empty text leaves it out."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in MOSS's meta instruction, used for questions where `system` is not given; inner thoughts are then written."""
    thoughts: bool | None = None
    """Let the model write inner thoughts and commands before its reply, and run the calls in these; by default where `plugins` has any."""
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    batch_size: int = 16
    """Replies that a rank writes at once. On a CPU they are the same with any number."""
    max_new_tokens: int = 256
    """Of each segment."""
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_p: float = 0.8
    top_k: int = 40
    repetition_penalty: float = 1.02
    seed: int = 0
    tag: str = "auto"
    """How good a reply is asked for, of a model trained on tagged dialogues: `best`, `none`, or a level, 1 being the worst. `auto`: the
    best that the model knows. Earlier replies of a file of dialogues keep the levels they have there."""
    guidance: float = 1.0
    """Logits are those under `guidance_from`, plus so many times what `tag` adds to them: 1 is off, more exaggerates the tag, 0 leaves
    `guidance_from` alone. Two prompts are read for each reply, and twice the keys and values are kept."""
    guidance_from: str = "none"
    """What stands in the place of `tag` in the second prompt: `none`, `worst`, a level, or `opposite`: the worst or
    the best level, whichever is farther from `tag` (none for the middle). No effect where guidance is 1."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` keeps that of `model`, or takes fp32 on a processor that cannot multiply it."""
    device_map: DeviceMap = DeviceMap.single
    attention: Attention = Attention.auto
    unverified: bool = False
    """Take `model` although it is not what its lineage.json says."""
    allow_pickle: bool = False

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if self.system is not None and self.plugins:
            found.append("system and plugins exclude each other: switches are part of a meta instruction; write them into system")
        if self.dialogue is not None and (self.system is not None or self.plugins):
            found.append("system and plugins have no effect on dialogue, whose records carry their own meta instruction; leave them out")
        if self.thoughts is False and self.plugins:
            found.append("plugins need inner thoughts and commands, which thoughts=false leaves out; leave one of them out")
        if not all(math.isfinite(value) for value in (self.temperature, self.top_p, self.repetition_penalty)):
            found.append("temperature, top_p and repetition_penalty must be finite numbers")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.temperature < 0:
            found.append(f"temperature is {self.temperature}; expected zero (no sampling) or more")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p is {self.top_p}; expected a number above 0 and up to 1")
        if self.top_k < 0:
            found.append(f"top_k is {self.top_k}; expected zero (off) or more")
        if self.tag not in TAGS and not _is_level(self.tag):
            found.append(f"tag is {self.tag!r}; expected {', '.join(TAGS)}, or the number of a level, 1 being the worst")
        found += self._guidance_problems()
        if self.repetition_penalty <= 0:
            found.append(f"repetition_penalty is {self.repetition_penalty}; expected a number above zero (1 is off)")
        return found

    def _guidance_problems(self) -> list[str]:
        found = []
        if not math.isfinite(self.guidance) or self.guidance < 0:
            found.append(f"guidance is {self.guidance}; expected a finite number, zero or more (1 is off)")
        if self.guidance_from not in AWAY_FROM and not _is_level(self.guidance_from):
            told = f"expected {', '.join(AWAY_FROM)}, or the number of a level, 1 being the worst"
            found.append(f"guidance_from is {self.guidance_from!r}; {told}")
        elif self.guidance != 1 and self.tag == "none":
            found.append(f"guidance is {self.guidance}, but tag=none asks for no level to be led to; give a tag, or guidance=1")
        elif self.guidance != 1 and _is_level(self.tag) and _is_level(self.guidance_from) and int(self.tag) == int(self.guidance_from):
            found.append(
                f"guidance is {self.guidance}, but tag={self.tag} and guidance_from={self.guidance_from} are the same level; "
                "give two, or guidance=1"
            )
        return found

    @property
    def writes_thoughts(self) -> bool:
        """Whether the model writes inner thoughts."""
        return bool(self.plugins) if self.thoughts is None else self.thoughts


@dataclass
class GenerateConfig(SpeakerConfig):
    """What `scripts/generate.py` takes. Exactly one of `prompt`, `prompts`, `dialogue` and `chat` is given."""

    prompt: str | None = None
    """A question; the model answers it as the first message of a dialogue."""
    chat: bool = False
    """A dialogue in the terminal."""
    out: str | None = None
    """Write the replies here, JSONL, instead of printing them."""
    show_thoughts: bool = True
    """Print inner thoughts, commands and results."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        given = [name for name in ("prompt", "prompts", "dialogue") if getattr(self, name) is not None] + ["chat"] * self.chat
        if len(given) != 1:
            told = f"found {' and '.join(given)}" if given else "found none of them"
            found.append(f'exactly one of prompt="...", prompts=FILE, dialogue=FILE and chat=true must be given; {told}')
        if self.chat and self.out is not None:
            found.append("out has no effect on chat; leave it out")
        return found + super().problems()
