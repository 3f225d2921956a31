"""Settings of the preference model's jobs."""

from __future__ import annotations

from dataclasses import dataclass

from moss_train.inference.config import SpeakerConfig


@dataclass
class SampleConfig(SpeakerConfig):
    """What `scripts/sample.py` takes. Exactly one of `prompts` and `dialogue` is given.

    By default responses are drawn from the model's own distribution, so that they differ as much as the model leaves it open.
    """

    out: str = "???"
    """File to write, JSONL: a line for each prompt. Until it is complete, what is there stands in `<out>.partial`."""
    samples: int = 4
    """Responses to each prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        given = [name for name in ("prompts", "dialogue") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"found {' and '.join(given)}" if given else "found none of them"
            found.append(f"exactly one of prompts=FILE and dialogue=FILE must be given; {told}")
        if not self.out.strip():
            found.append("out is empty; expected the name of a file, such as out=responses.jsonl")
        if self.samples < 1:
            found.append(f"samples is {self.samples}; expected 1 or more")
        if self.temperature == 0 and self.samples > 1:
            found.append(
                f"temperature=0 takes the likeliest token each time, so that all samples={self.samples} would be equal; "
                "expected a temperature above zero, or samples=1"
            )
        return found + super().problems()
