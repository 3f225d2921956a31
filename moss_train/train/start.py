"""What a stage starts from: a model directory and tokenizer that are what they claim, the architecture, and the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train.config import StageConfig
from moss_train.errors import DataError, UsageError

if TYPE_CHECKING:
    from moss_train.data.cache import Cache
    from moss_train.data.tokenizer import MossTokenizer

Say = Callable[[str], None]


def verify_start(config: StageConfig, cache: Cache, say: Say) -> None:
    """Refuses a model or a tokenizer that is not what its lineage.json says, every byte read unless it is known from before.

    Raises:
        CheckpointError: Naming each file and what is wrong with it.
    """
    from moss_train.artifacts.lineage_verify import require
    from moss_train.data.fingerprint import hash_inputs

    given = {"init_from": config.init_from, "tokenizer.path": config.tokenizer.path}
    for key, directory in given.items():
        if directory is None:
            continue
        if config.init_unverified:
            say(f"WARNING: {key}={directory} is not verified (init_unverified=true)")
            continue
        require(Path(directory), key, "init_unverified=true", say, lambda paths: hash_inputs(paths, cache))


def architecture(config: StageConfig, seq_len: int, say: Say) -> Any:
    """The architecture to train: that of `init_from`, checked against the weights there, or the one in the model section."""
    from transformers import CodeGenConfig

    if config.init_from is None:
        shape = config.model
        return CodeGenConfig(
            vocab_size=shape.vocab_size or 64,
            n_positions=shape.max_positions,
            n_ctx=shape.max_positions,
            initializer_range=shape.initializer_range,
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
    if seq_len > found.n_positions:
        raise UsageError(
            f"data.seq_len is {seq_len}, but the model in {directory} covers {found.n_positions} positions; lower data.seq_len"
        )
    return found


def fit_vocabulary(config: StageConfig, model_config: Any, tokenizer: MossTokenizer) -> Any:
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


def build(config: StageConfig, model_config: Any, say: Say, weights: Path | None = None) -> Any:
    """The model to train, on this rank's device, or divided over ranks where the engine asks for it.

    Args:
        config: Of the run.
        model_config: Its architecture.
        say: Told where the weights come from.
        weights: A training checkpoint to take them from, instead of what the configuration starts from.
    """
    from moss_train.model.codegen import init_model
    from moss_train.model.loading import load_model

    dtype = _dtype(config)
    if weights is not None:
        say(f"weights: {weights}")
        model = load_model(weights, dtype=dtype)
    elif config.init_from is None:
        say("weights: random (init_from=null)")
        model = init_model(model_config, config.run.seed, dtype)
    else:
        say(f"weights: {config.init_from}")
        model = load_model(Path(config.init_from), dtype=dtype, allow_pickle=config.allow_pickle)
    _set_up(model, config, model_config, dtype, say)
    model.set_z_loss(config.train.z_loss)
    return model


def build_pm(config: StageConfig, model_config: Any, with_lm: bool, say: Say, weights: Path | None = None) -> Any:
    """The preference model to train; see `build`. A language model in `init_from` gives its trunk, and its head is new, by the seed.

    Args:
        with_lm: Whether it keeps the output projection.
    """
    from moss_train.model.codegen import init_model
    from moss_train.model.loading import load_pm
    from moss_train.model.pm import CodeGenPM, pm_config

    dtype, seed = _dtype(config), config.run.seed
    model: Any
    if weights is not None:
        say(f"weights: {weights}")
        model = load_pm(weights, dtype=dtype, with_lm=with_lm)
    elif config.init_from is None:
        say("weights: random (init_from=null)")
        model = init_model(pm_config(model_config, with_lm), seed, dtype, CodeGenPM)
    else:
        say(f"weights: {config.init_from}")
        model = load_pm(Path(config.init_from), dtype=dtype, allow_pickle=config.allow_pickle, new_head=seed, with_lm=with_lm)
    _set_up(model, config, model_config, dtype, say)
    return model


def _dtype(config: StageConfig) -> Any:
    import torch

    from moss_train.config import Precision

    return torch.bfloat16 if config.train.precision is Precision.bf16 else torch.float32


def _set_up(model: Any, config: StageConfig, model_config: Any, dtype: Any, say: Say) -> None:
    """What does not depend on the head."""
    from moss_train.model.attention import resolve_backend
    from moss_train.model.codegen import set_attention
    from moss_train.train import engine as distributed

    head_dim = model_config.n_embd // model_config.n_head
    backend, reason = resolve_backend(config.model.attention.value, distributed.device(), dtype, head_dim)
    say(f"attention: {backend} ({reason})")
    set_attention(model, backend)
    model.set_recompute(config.model.recompute, config.model.recompute_blocks)
