"""Supervised fine-tuning: dialogues -> rows -> the loop -> an export. Serves preference-aware training too, which differs in its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train.errors import DataError, UsageError
from moss_train.sft.config import SFTConfig, VerifySFTConfig

if TYPE_CHECKING:
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.sft.data import Rows
    from moss_train.sft.inputs import Input
    from moss_train.train.run import Run


def main(config: SFTConfig) -> float:
    """Runs one fine-tuning job.

    Returns:
        The final validation loss per supervised token (the training loss where there is no validation data): what a sweep minimises.
    """
    from moss_train.artifacts.export import write_export
    from moss_train.data.loader import StepPlan
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.sft.data import open_rows, parents_of_rows, render_inputs
    from moss_train.sft.inputs import Input, find_inputs
    from moss_train.train import engine as distributed
    from moss_train.train.resume import find_checkpoint
    from moss_train.train.run import open_run
    from moss_train.train.stage import train_stage

    with open_run(config, "sft") as run:
        # What can be refused without reading data is refused first.
        StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
        distributed.check_section(config.deepspeed)
        saved = find_checkpoint(run)
        run.once_per_machine("what the run starts from", lambda: verify_start(config, run.log))
        model_config = run.together(lambda: architecture(config, run.log))
        found = run.once_per_machine("the data files", lambda: [asdict(one) for one in find_inputs(config.data)])
        inputs = [Input(**one) for one in found]
        trained = run.once_per_machine("the tokenizer", lambda: tokenizer_directory(config, inputs, run.log))
        tokenizer = run.together(lambda: MossTokenizer.load(trained))
        model_config = run.together(lambda: fit_vocabulary(config, model_config, tokenizer))
        entries = run.once_per_machine("the data to be rendered", lambda: render_inputs(config, inputs, tokenizer, run.log, Path(trained)))
        rows = run.together(lambda: open_rows(config, inputs, entries, tokenizer, run.log))
        run.together(lambda: say_rejects(rows, run) if distributed.rank() == 0 else None)
        run.agree("the rows", rows.fingerprint)
        if saved is not None:
            rows.train_rows.go_on(saved.state.samples, saved.state.position)
        export = partial(
            write_export,
            run.dir / "export",
            tokenizer=tokenizer,
            max_shard_bytes=int(config.export.max_shard_gb * 1e9),
            writes=distributed.rank() == 0,
        )
        stage_data = rows.stage_data()
        stage_data.parents = run.together(lambda: parents_of_rows(config, Path(trained), entries) if distributed.rank() == 0 else [])
        last = train_stage(run, config, partial(build, config, model_config, run.log), stage_data, export, saved)
    return last.get("valid/loss", last.get("train/loss", float("nan")))


def verify(config: VerifySFTConfig) -> None:
    """Runs a stretch of a job straight and interrupted, and compares: the job behind `scripts/verify_resume.py`."""
    from moss_train.train.verify import verify_resume

    verify_resume(config, config.verify, main)


def verify_start(config: SFTConfig, say: Callable[[str], None]) -> None:
    """Refuses a model or a tokenizer that is not what its lineage.json says, every byte read unless it is known from before.

    Raises:
        CheckpointError: Naming each file and what is wrong with it.
    """
    from moss_train.artifacts.lineage_verify import require
    from moss_train.data.fingerprint import hash_inputs
    from moss_train.sft.inputs import open_cache

    given = {"init_from": config.init_from, "tokenizer.path": config.tokenizer.path}
    for key, directory in given.items():
        if directory is None:
            continue
        if config.init_unverified:
            say(f"WARNING: {key}={directory} is not verified (init_unverified=true)")
            continue
        cache = open_cache(config.data)
        require(Path(directory), key, "init_unverified=true", say, lambda paths, cache=cache: hash_inputs(paths, cache))  # type: ignore[misc]


def architecture(config: SFTConfig, say: Any) -> Any:
    """The architecture to train: that of `init_from`, checked against the weights there, or the one in the model section."""
    from transformers import CodeGenConfig

    if config.init_from is None:
        shape = config.model
        return CodeGenConfig(
            vocab_size=shape.vocab_size or 64,
            n_positions=shape.max_positions,
            n_ctx=shape.max_positions,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            rotary_dim=shape.rotary_dim,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    from moss_train.model.loading import check_weights, read_model_config

    directory = Path(config.init_from)
    found = read_model_config(directory)
    check_weights(directory, found, allow_pickle=config.allow_pickle)
    asked = {
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "hidden_size": "n_embd",
        "rotary_dim": "rotary_dim",
        "vocab_size": "vocab_size",
    }
    differing = [
        f"model.{key}={value} (there: {getattr(found, theirs)})"
        for key, theirs in asked.items()
        if (value := getattr(config.model, key)) is not None and value != getattr(found, theirs)
    ]
    if differing:
        say(f"WARNING: the architecture is that of init_from={directory}; these have no effect: {', '.join(differing)}")
    if config.data.seq_len > found.n_positions:
        raise UsageError(
            f"data.seq_len is {config.data.seq_len}, but the model in {directory} covers {found.n_positions} positions; lower data.seq_len"
        )
    return found


def tokenizer_directory(config: SFTConfig, inputs: Sequence[Input], say: Any) -> str:
    """The tokenizer of `tokenizer.path`, of `init_from`, or a small one trained on the training dialogues."""
    from moss_train.sft.inputs import train_tokenizer

    given = config.tokenizer.path or config.init_from
    return given if given is not None else train_tokenizer(config.data, inputs, config.tokenizer.train_vocab_size, say)


def say_rejects(rows: Rows, run: Run) -> None:
    """Writes down the records left out, where there are any."""
    path = rows.write_rejects(run.dir)
    if path is not None:
        run.log(f"the records left out are in {path}")


def fit_vocabulary(config: SFTConfig, model_config: Any, tokenizer: MossTokenizer) -> Any:
    """The architecture with its vocabulary settled: chosen from the tokenizer for random weights, else checked against it."""
    if config.init_from is None and config.model.vocab_size is None:
        model_config.vocab_size = tokenizer.vocab_size
    if tokenizer.size > model_config.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.size} tokens, but the model only {model_config.vocab_size} embedding rows; extend the "
            "model's vocabulary, or use the tokenizer it was trained with"
        )
    model_config.bos_token_id, model_config.eos_token_id, model_config.pad_token_id = (
        tokenizer.endoftext,
        tokenizer.eom,
        tokenizer.endoftext,
    )
    return model_config


def build(config: SFTConfig, model_config: Any, say: Any, weights: Path | None = None) -> Any:
    """The model to train, on this rank's device, or divided over ranks where the engine asks for it.

    Args:
        config: Of the run.
        model_config: Its architecture.
        say: Told where the weights come from.
        weights: A training checkpoint to take them from, instead of what the configuration starts from.
    """
    import torch

    from moss_train.config import Precision
    from moss_train.model.attention import resolve_backend
    from moss_train.model.codegen import init_model, set_attention
    from moss_train.model.loading import load_model
    from moss_train.train import engine as distributed

    dtype = torch.bfloat16 if config.train.precision is Precision.bf16 else torch.float32
    if weights is not None:
        say(f"weights: {weights}")
        model = load_model(weights, dtype=dtype)
    elif config.init_from is None:
        say("weights: random (init_from=null)")
        model = init_model(model_config, config.run.seed, dtype)
    else:
        say(f"weights: {config.init_from}")
        model = load_model(Path(config.init_from), dtype=dtype, allow_pickle=config.allow_pickle)
    head_dim = model_config.n_embd // model_config.n_head
    backend, reason = resolve_backend(config.model.attention.value, distributed.device(), dtype, head_dim)
    say(f"attention: {backend} ({reason})")
    set_attention(model, backend)
    model.set_recompute(config.model.recompute)
    return model
