"""A stage that also writes the full gradient of its first optimizer step: capture_gradients.py OUT.pt [stage=NAME] [overrides].

The gradient is what DeepSpeed is about to apply: reduced over ranks and micro-batches, before clipping, in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from moss_train import cli
from moss_train.train import engine as distributed


def main() -> None:
    """Runs a stage, SFT by default, with the engine's first update watched."""
    stage = next((name for name in ("pm", "pretrain") if f"stage={name}" in sys.argv), "sft")
    sys.argv[:] = [argument for argument in sys.argv if not argument.startswith("stage=")]
    out = Path(next(argument for argument in sys.argv[1:] if argument.endswith(".pt")))
    sys.argv.remove(str(out))
    initialize = distributed.initialize

    def watched(*arguments: Any) -> Any:
        from deepspeed.utils import safe_get_full_grad

        engine = initialize(*arguments)
        apply = engine.step

        def step(*args: Any, **kwargs: Any) -> Any:
            if engine.is_gradient_accumulation_boundary() and engine.global_steps == 0:
                gradients = {}
                for name, parameter in engine.module.named_parameters():
                    gradient = safe_get_full_grad(parameter)
                    gradients[name] = gradient.detach().float().cpu().clone()
                if distributed.rank() == 0:
                    torch.save(gradients, out)
            return apply(*args, **kwargs)

        engine.step = step
        return engine

    distributed.initialize = watched
    cli.run(stage)


if __name__ == "__main__":
    main()
