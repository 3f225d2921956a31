"""An export is opened again and compared before it has its name, in every number format and layout, and takes the memory of a shard."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CodeGenConfig

from moss_train.artifacts import export as exporting
from moss_train.artifacts import reopen
from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Lineage
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError, UsageError
from moss_train.model.codegen import CodeGenLM, init_model
from tests.launch import run, succeeded


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    return MossTokenizer.train(["To be, or not to be."], 300, reserved_tags=8)


def make(tokenizer: MossTokenizer, hidden_size: int = 64, num_layers: int = 3) -> CodeGenLM:
    """A model with weights wide enough that every part of it matters."""
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=128, n_ctx=128, n_embd=hidden_size, n_layer=num_layers, n_head=4, rotary_dim=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = init_model(config, 0, torch.float32).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def write(model: CodeGenLM, out: Path, tokenizer: MossTokenizer, layout: str = "codegen", dtype: str = "fp32") -> None:
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    record = Lineage(kind="export", stage="test")
    write_export(out, parameters, model.config, dtype, record, tokenizer=tokenizer, max_shard_bytes=100_000, layout=layout)


@pytest.mark.parametrize("layout", ["codegen", "gptj"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_stock_classes_compute_what_the_model_does(tokenizer: MossTokenizer, tmp_path: Path, layout: str, dtype: str) -> None:
    model = make(tokenizer)
    write(model, tmp_path / "export", tokenizer, layout, dtype)
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(stock).__name__ == {"codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM"}[layout]
    if dtype != "fp32":
        model = model.to(exporting.DTYPES[dtype]).float()
    ids = torch.randint(tokenizer.size, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(ids).logits, stock(ids).logits
    assert (expected - found).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == str(exporting.DTYPES[dtype]).removeprefix("torch.")
    assert json.loads((tmp_path / "export" / "lineage.json").read_text())["details"]["layout"] == layout


@pytest.mark.parametrize(
    "name", ["transformer.h.1.attn.qkv_proj.weight", "transformer.h.2.mlp.fc_in.bias", "transformer.ln_f.bias", "lm_head.weight"]
)
@pytest.mark.parametrize("layout", ["codegen", "gptj"])
def test_one_that_computes_something_else_is_not_kept(
    tokenizer: MossTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
) -> None:
    """A fault between the model and the files: two rows change places on their way."""
    real = exporting.rename

    def swapped(parameter: str, tensor: torch.Tensor, wanted: str) -> list[tuple[str, torch.Tensor]]:
        return real(parameter, tensor.flip(0) if parameter == name else tensor, wanted)

    monkeypatch.setattr(exporting, "rename", swapped)
    with pytest.raises(CheckpointError, match="opened again"):
        write(make(tokenizer), tmp_path / "export", tokenizer, layout)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_number_is_not_kept(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(CheckpointError, match="nan"):
        write(model, tmp_path / "export", tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_and_nothing_else(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    for name in ("export.tmp-0123abcd", "export.tmp", "export.tmp-mine", "other.tmp-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    write(make(tokenizer), tmp_path / "export", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "export.tmp", "export.tmp-mine", "other.tmp-0123abcd"]


def test_a_place_that_cannot_be_written_is_named(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write(make(tokenizer), tmp_path / "file" / "export", tokenizer)


def test_parameters_may_come_in_any_order(tokenizer: MossTokenizer) -> None:
    model, ids = make(tokenizer), tokenizer.encode("To be or not")
    tracer = reopen.Tracer(model.config, ids)
    for name, parameter in reversed(list(model.named_parameters())):
        tracer.feed(name, parameter)
    assert tracer.logits is not None
    with torch.no_grad():
        torch.testing.assert_close(tracer.logits, model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)


PROGRAM = """
import sys
from pathlib import Path
from moss_train.artifacts.config import ExportJobConfig, Layout
from moss_train.artifacts import export
import moss_train.model.codegen, moss_train.data.tokenizer, transformers, transformers.models.gptj.modeling_gptj
Path("/proc/self/clear_refs").write_text("5")
def status(name):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1])
before = status("VmRSS")
export.main(ExportJobConfig(model=sys.argv[1], out=sys.argv[2], max_shard_gb=0.02, format=Layout.gptj))
print((status("VmHWM") - before) // 1024)
"""


def test_memory_is_that_of_a_shard(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    """230 MB of weights in shards of 20 MB: a shard, and of the comparison a layer (23 MB) in both programs."""
    model = make(tokenizer, hidden_size=768, num_layers=8)
    model.config.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model", max_shard_size="1GB")
    tokenizer.save(tmp_path / "model")
    total = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert total > 220e6
    result = succeeded(run([sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(tmp_path / "out")]))
    grown = int(result.stdout.split()[-1])
    assert grown < 150, f"{grown} MiB for an export of {total / 2**20:.0f} MiB"
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) >= 11
    shutil.rmtree(tmp_path / "out")
