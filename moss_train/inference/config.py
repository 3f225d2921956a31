"""Settings of generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from moss_train.config import Attention, ExportDtype, Plugin


@dataclass
class GenerateConfig:
    """What `scripts/generate.py` takes. Exactly one of `prompt` and `dialogue` is given."""

    model: str = "???"
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory."""
    prompt: str | None = None
    """A question; the model answers it as the first message of a dialogue."""
    dialogue: str | None = None
    """A file of dialogues in the training layout; the reply of the last turn of each is generated anew. `FILE#N` takes the first N."""
    system: str | None = None
    """Meta instruction for `prompt`; by default the one the model was trained with most. An empty text leaves it out."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in MOSS's meta instruction, used for `prompt` where `system` is not given."""
    thoughts: bool = False
    """Let the model write inner thoughts and commands before its reply, which is then preceded by empty results: no tool is run."""
    max_new_tokens: int = 256
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_p: float = 0.8
    top_k: int = 40
    repetition_penalty: float = 1.02
    seed: int = 0
    dtype: ExportDtype = ExportDtype.auto
    attention: Attention = Attention.auto
    allow_pickle: bool = False

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if (self.prompt is None) == (self.dialogue is None):
            found.append('exactly one of prompt="..." and dialogue=FILE must be given')
        if self.system is not None and self.plugins:
            found.append("system and plugins exclude each other: switches are part of a meta instruction; write them into system")
        if self.dialogue is not None and (self.system is not None or self.plugins):
            found.append("system and plugins have no effect on dialogue, whose records carry their own meta instruction; leave them out")
        if not all(math.isfinite(value) for value in (self.temperature, self.top_p, self.repetition_penalty)):
            found.append("temperature, top_p and repetition_penalty must be finite numbers")
        if self.max_new_tokens < 1:
            found.append(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if self.temperature < 0:
            found.append(f"temperature is {self.temperature}; expected zero (no sampling) or more")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p is {self.top_p}; expected a number above 0 and up to 1")
        if self.top_k < 0:
            found.append(f"top_k is {self.top_k}; expected zero (off) or more")
        if self.repetition_penalty <= 0:
            found.append(f"repetition_penalty is {self.repetition_penalty}; expected a number above zero (1 is off)")
        return found
