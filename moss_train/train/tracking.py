"""What a run says of itself: a console line a step, a progress bar on a terminal, metrics.jsonl, Weights & Biases, the loss plot. Rank 0
only.

Nothing here may stop a run: Weights & Biases being away costs a warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from moss_train.artifacts import lineage, lineage_mapping
from moss_train.config import TrackingConfig, WandbMode
from moss_train.files import replace_content
from moss_train.train import resident
from moss_train.train.loop import StepReport

_log = logging.getLogger("moss_train")

_MOST_SECONDS = 30.0
"""Time that Weights & Biases gets to take note of an artefact."""


def setup_logging(run_dir: Path | None, is_rank0: bool, current_rank: int) -> None:
    """Rank 0 speaks at INFO on the console and in train.log; the others only warn, with their number."""
    root = logging.getLogger("moss_train")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s" if is_rank0 else f"[rank {current_rank}] %(levelname)s %(message)s"))
    root.addHandler(console)
    root.setLevel(logging.INFO if is_rank0 else logging.WARNING)
    root.propagate = False
    if is_rank0 and run_dir is not None:
        file = _LogFile(run_dir / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


class _LogFile(logging.FileHandler):
    """A log that a full disk does not turn into a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """What could not be written is on the console."""


class _Console(logging.Handler):
    """Writes to whatever sys.stdout is now: a progress bar replaces it to keep itself below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


class Tracker:
    """Reports the steps of one run.

    Args:
        config: What to report to.
        run_dir: Where metrics.jsonl and plots/ go.
        total_steps: Of the run, for the progress bar and the time left.
        log_every: Steps between console lines.
        weight_name: What a batch's weight counts, as in metrics.jsonl ("supervised_tokens").
        resolved: The configuration, for Weights & Biases.
        peak_flops: Of all ranks together, or None where the device is not in the table.
        flops_per_token: Training FLOPs a token, or None where not known.
        resumed_step: Where the run goes on; what metrics.jsonl has of later steps, which will be trained again, is dropped.
        tokens_seen: Before this start.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        total_steps: int,
        log_every: int,
        weight_name: str,
        resolved: dict[str, Any],
        peak_flops: float | None = None,
        flops_per_token: float | None = None,
        resumed_step: int | None = None,
        tokens_seen: int = 0,
    ):
        self.run_dir = run_dir
        self.total_steps = total_steps
        self.log_every = log_every
        self.weight_name = weight_name
        self.peak_flops, self.flops_per_token = peak_flops, flops_per_token
        self.tokens_seen = tokens_seen
        self._earlier = [] if resumed_step is None else _keep_events(run_dir / "metrics.jsonl", resumed_step)
        self._seconds: list[float] = []
        self._metrics: TextIO = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = _start_wandb(config, run_dir, resolved)
        self._bar = _start_bar(total_steps, resumed_step or 0)

    def step(self, report: StepReport, more: dict[str, float] | None = None) -> None:
        """Reports one optimizer step, with more figures for metrics.jsonl where there are any."""
        self.tokens_seen += report.tokens
        self._seconds = [*self._seconds[-19:], report.seconds]
        event = {f"train/{name}": value for name, value in report.metrics.items()} | {
            **({"train/grad_norm": report.grad_norm} if math.isfinite(report.grad_norm) else {}),
            "train/lr": report.learning_rate,
            f"train/{self.weight_name}": report.weight,
            "perf/tokens_per_second": report.tokens / report.seconds,
            f"perf/{self.weight_name}_per_second": report.weight / report.seconds,
            "perf/step_seconds": report.seconds,
            "perf/memory_gib": memory_gib(),
            **(more or {}),
        }
        if report.skipped:
            event["train/skipped"] = 1.0
            _log.warning(
                f"step {report.step}: the loss {report.metrics['loss']:.4f} is far above that of the steps before; the update is left out "
                "(train.spike_sigmas)"
            )
        if self.peak_flops and self.flops_per_token:
            event["perf/mfu"] = report.tokens * self.flops_per_token / report.seconds / self.peak_flops
        self._write(report.step, event)
        if self._bar is not None:
            self._bar.update(0, completed=report.step, refresh=True)
        if report.step % self.log_every == 0 or report.step == self.total_steps:
            _log.info(self._line(report, event))

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Reports metrics on validation data, named `<set>/<metric>`."""
        self._write(step, {f"eval/{name}": value for name, value in metrics.items()})
        _log.info(f"eval {step}/{self.total_steps} | " + " | ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Reports figures that belong to no step's training, in metrics.jsonl alone."""
        self._write(step, figures)

    def has_evaluation(self, step: int) -> bool:
        """Whether metrics.jsonl had an evaluation of this step when the run was resumed."""
        return any(event["step"] == step and any(name.startswith("eval/") for name in event) for event in self._earlier)

    @property
    def last_metrics(self) -> dict[str, float]:
        """The last evaluation before the run was resumed; empty where there is none."""
        for event in reversed(self._earlier):
            found = {name.removeprefix("eval/"): value for name, value in event.items() if name.startswith("eval/")}
            if found:
                return found
        trained: dict[str, Any] = next((event for event in reversed(self._earlier) if "train/loss" in event), {})
        return {name: value for name, value in trained.items() if name in ("train/loss", "train/accuracy")}

    def uses(self, parents: Sequence[lineage.Parent]) -> None:
        """Tells Weights & Biases what the run is made from: in its configuration, and as input edges to artifacts.

        Without a connection there are no input edges: the library takes them only from a server.
        """
        if self._wandb is None or not parents:
            return
        inputs = [{"role": parent.role, "id": parent.id, "name": parent.name} for parent in parents]
        places = [Path(parent.path) for parent in parents if parent.path is not None]

        def tell(wandb_run: Any) -> None:
            wandb_run.config.update({"lineage_inputs": inputs}, allow_val_change=True)
            for place in places if not wandb_run.offline else []:
                if (artifact := _artifact(place)) is not None:
                    wandb_run.use_artifact(artifact)

        self._tell("what the run is made from", tell)

    def made(self, artefact: Path) -> None:
        """Tells Weights & Biases that the run made an artefact."""

        def tell(wandb_run: Any) -> None:
            if (artifact := _artifact(artefact)) is not None:
                wandb_run.log_artifact(artifact)

        self._tell(str(artefact), tell)

    def _tell(self, what: str, tell: Callable[[Any], None]) -> None:
        """Calls `tell` with the run there; other ranks are waiting, so not for long."""
        if self._wandb is None:
            return
        failures: list[str] = []

        def work(wandb_run: Any) -> None:
            try:
                tell(wandb_run)
            except Exception as error:
                failures.append(str(error))

        worker = threading.Thread(target=work, args=(self._wandb,), daemon=True)
        worker.start()
        worker.join(_MOST_SECONDS)
        if worker.is_alive():
            failures.append(f"no answer within {_MOST_SECONDS:.0f} s")
        if failures:
            _log.warning(f"Weights & Biases was not told of {what} ({failures[0]}); lineage.json has everything")

    def close(self) -> None:
        """Ends reporting on steps and draws the loss."""
        if self._bar is not None:
            self._bar.stop()
        with contextlib.suppress(OSError):
            self._metrics.close()
        try:
            plot_loss(self.run_dir / "metrics.jsonl", self.run_dir / "plots" / "loss.png")
        except Exception as error:
            # The weights are not yet exported; a picture is not worth them.
            _log.warning(f"the loss could not be drawn ({error}); metrics.jsonl has the figures")

    def finish(self) -> None:
        """Ends what Weights & Biases is told, and sends it."""
        if self._wandb is not None:
            try:
                self._wandb.finish()
                self._wandb = None
            except Exception as error:
                _log.warning(f"Weights & Biases did not finish: {error}; the run itself is not affected")

    def _line(self, report: StepReport, event: dict[str, float]) -> str:
        seconds = sorted(self._seconds)[len(self._seconds) // 2]
        parts = [
            f"step {report.step}/{self.total_steps}",
            f"loss {report.metrics['loss']:.4f}",
            f"grad norm {report.grad_norm:.2f}",
            f"lr {report.learning_rate:.2e}",
            f"{_short(event['perf/tokens_per_second'])} tok/s",
            f"{_short(event[f'perf/{self.weight_name}_per_second'])} {self.weight_name.replace('_', ' ')}/s",
        ]
        if "perf/mfu" in event:
            parts.append(f"{event['perf/mfu']:.0%} MFU")
        parts += [f"{event['perf/memory_gib']:.1f} GiB", f"ETA {_duration(seconds * (self.total_steps - report.step))}"]
        return " | ".join(parts)

    def _write(self, step: int, event: dict[str, float]) -> None:
        line = {"step": step, "tokens_seen": self.tokens_seen, "time": round(time.time(), 3), **event}
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            _log.warning(f"metrics.jsonl could not be written at step {step} ({error}); the run goes on")
        if self._wandb is not None:
            try:
                self._wandb.log({**event, "tokens_seen": self.tokens_seen}, step=step)
            except Exception as error:
                _log.warning(f"Weights & Biases is away ({error}); the run goes on, metrics.jsonl has everything")
                self._wandb = None


def _keep_events(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Drops what metrics.jsonl says of steps after `last_step`, and a line that a crash cut off; returns what is left."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("step", last_step + 1) <= last_step:
            kept.append(event)
    replace_content(path, "".join(json.dumps(event) + "\n" for event in kept).encode())
    return kept


def memory_gib() -> float:
    """Peak memory of this process so far, GiB: of the GPU where there is one, else resident memory."""
    return resident.peak_bytes() / 2**30


def resident_gib() -> float:
    """Memory of this process now, GiB."""
    return resident.resident_bytes() / 2**30


def plot_loss(metrics: Path, image: Path) -> None:
    """Draws the training loss of each step, and validation losses, from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, list[tuple[int, float]]] = {}
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            for name, value in event.items():
                if name == "train/loss" or (name.startswith("eval/") and name.endswith("/loss")):
                    series.setdefault(name, []).append((event["step"], value))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in sorted(series.items(), reverse=True):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, linewidth=1.2, marker="o" if name.startswith("eval/") else None, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=120)
    plt.close(figure)


def _artifact(artefact: Path) -> Any:
    """The record of an artefact as an artifact of Weights & Biases, or None where it has none. It stands for the content: no weights are
    uploaded."""
    import wandb

    record = lineage.load(artefact)
    if record is None:
        return None
    described = wandb.Artifact(**lineage_mapping.wandb_artifact(record))
    described.add_file(str(lineage.record_path(artefact)), name=lineage.FILE_NAME)
    return described


def _start_wandb(config: TrackingConfig, run_dir: Path, resolved: dict[str, Any]) -> Any:
    if config.wandb is WandbMode.disabled:
        return None
    try:
        import wandb

        return wandb.init(
            project=config.project,
            name=config.name or run_dir.name,
            dir=str(run_dir),
            mode=config.wandb.value,
            config=resolved,
            reinit="finish_previous",
            # Without a key it would ask on the terminal, while the other ranks wait.
            settings=wandb.Settings(login_timeout=float(os.environ.get("WANDB_LOGIN_TIMEOUT", "20")), finish_timeout=60),
        )
    except Exception as error:
        _log.warning(f"Weights & Biases could not be started ({error}); the run goes on, metrics.jsonl has everything")
        return None


def _start_bar(total_steps: int, done: int) -> Any:
    if not sys.stdout.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(file=sys.stdout), transient=True
    )
    bar.add_task("training", total=total_steps, completed=done)
    bar.start()
    return bar


def _short(value: float) -> str:
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.1f}k" if value < 1e6 else f"{value / 1e6:.2f}M"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
