"""An export opens in an environment without moss_train, in both layouts: no missing key, the same logits, the same ids, and a reply by the
snippet that was published with MOSS."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.speaker import Speaker
from moss_train.model.loading import load_model
from tests.forked import forked
from tests.launch import REPOSITORY, run, succeeded
from tests.tagged_models import export_tagged, tagged_model

STOCK = """
import json, sys, torch
assert not any("moss_train" in name for name in sys.modules)
try:
    import moss_train
    sys.exit("moss_train can be imported here")
except ModuleNotFoundError:
    pass
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, ids = sys.argv[1], json.loads(sys.argv[2])
model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(directory)
prompt = "<|Human|>: Hi there<eoh>\\n<|MOSS|>:"
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, do_sample=False, max_new_tokens=8)
torch.save({
    "class": type(model).__name__, "module": type(model).__module__, "report": {key: list(value) for key, value in report.items()},
    "logits": model(torch.tensor([ids])).logits.detach(), "prompt": inputs["input_ids"][0].tolist(),
    "reply": output[0, inputs["input_ids"].shape[1]:].tolist(), "decoded": tokenizer.decode(inputs["input_ids"][0]),
    "plain": tokenizer("你好 world\\n\\n    if x:")["input_ids"],
}, sys.argv[3])
"""


# As published with MOSS, with the path, the device and the number of new tokens changed; it asks for remote code, and there is none.
PUBLISHED = """
import sys
from transformers import AutoTokenizer, AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model = model.eval()
meta_instruction = "You are an AI assistant whose name is MOSS.\\n"
query = meta_instruction + "<|Human|>: Hi there<eoh>\\n<|MOSS|>:"
inputs = tokenizer(query, return_tensors="pt")
outputs = model.generate(**inputs, do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.02, max_new_tokens=24)
response = tokenizer.decode(outputs[0][inputs.input_ids.shape[1]:], skip_special_tokens=True)
print(response)
assert outputs.shape[1] > inputs.input_ids.shape[1]
assert not any("transformers_modules" in name or "moss_train" in name for name in sys.modules)
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a short two-rank ZeRO-3 run."""
    run_dir = tmp_path_factory.mktemp("export") / "run"
    succeeded(forked(2, "scripts/sft.py", "+config=tiny_sft", f"run.dir={run_dir}", "train.steps=3", "train.eval_at_start=false"))
    return run_dir / "export"


@pytest.fixture(scope="module")
def gptj(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in GPT-J's layout."""
    out = tmp_path_factory.mktemp("layout") / "gptj"
    succeeded(forked(1, "scripts/export.py", f"model={export}", f"out={out}", "format=gptj", "dtype=fp32", "max_shard_gb=0.001"))
    return out


@pytest.fixture(scope="module")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that sees the installed libraries, but not this package, which is installed among them in editable form."""
    folder = tmp_path_factory.mktemp("stock")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A plain line in a .pth file adds a folder without running the .pth files inside it, and so without the editable finder.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert Path(sys.prefix) != folder
    return folder / "bin" / "python"


@pytest.mark.parametrize("layout", ["codegen", "gptj"])
def test_stock_transformers_loads_it_with_the_same_logits(
    export: Path, gptj: Path, stock_python: Path, tmp_path: Path, layout: str
) -> None:
    tokenizer = MossTokenizer.load(export)
    ids = tokenizer.encode("Hello 你好, what is 3 + 4? 请告诉我。")
    out = tmp_path / "stock.pt"
    opened = export if layout == "codegen" else gptj
    succeeded(run([str(stock_python), "-c", STOCK, str(opened), json.dumps(ids), str(out)], cwd=tmp_path))
    stock = torch.load(out)
    assert stock["class"] == {"codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM"}[layout]
    assert stock["module"] == f"transformers.models.{layout}.modeling_{layout}"
    assert not any(stock["report"][key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_model(export, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = ours(torch.tensor([ids])).logits
    assert torch.allclose(logits, stock["logits"], atol=1e-5, rtol=0)
    # The markers of a prompt are text, its control is the control, and nothing is added.
    assert stock["prompt"] == [
        *tokenizer.encode("<|Human|>:"),
        *tokenizer.encode(" Hi there"),
        tokenizer.eoh,
        *tokenizer.encode("\n<|MOSS|>:"),
    ]
    assert stock["decoded"] == "<|Human|>: Hi there<eoh>\n<|MOSS|>:"
    assert stock["plain"] == tokenizer.encode("你好 world\n\n    if x:")
    assert stock["reply"]


@pytest.mark.parametrize("layout", ["codegen", "gptj"])
def test_the_published_snippet_runs(export: Path, gptj: Path, stock_python: Path, tmp_path: Path, layout: str) -> None:
    succeeded(run([str(stock_python), "-c", PUBLISHED, str(export if layout == "codegen" else gptj)], cwd=tmp_path))


@pytest.mark.parametrize("layout", ["codegen", "gptj"])
def test_the_card_tells_what_it_is_and_how_to_use_it(export: Path, gptj: Path, stock_python: Path, layout: str) -> None:
    directory = export if layout == "codegen" else gptj
    card = (directory / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["license"] == "apache-2.0"
    assert "dialogues_train.jsonl" in card
    assert "valid/loss" in card
    # Its lines of code, as they stand, beside the directory.
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    succeeded(run([str(stock_python), "-c", code], cwd=directory.parent))


@pytest.mark.parametrize("middle", [False, True], ids=["plain", "middle"])
def test_the_documented_prompt_asks_for_the_best_level(tmp_path: Path, middle: bool) -> None:
    """The lines of docs/generate.md, as they stand: their ids are those of generate.py, and their guidance gives its greedy reply."""
    export = export_tagged(tmp_path / "export", *tagged_model(positions=1024), meta_instruction="Be <eom> brief.\n", middle_segments=middle)
    page = (REPOSITORY / "docs" / "generate.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("DIR", str(export)), names)
    # Drawn from random weights: it may be no more than an end.
    assert names["reply"].numel()
    speaker = Speaker(SpeakerConfig(str(export), temperature=0.0, repetition_penalty=1.0, max_new_tokens=20, guidance=2.0), 1)
    for question in ("What is 17 * 23?", "What does <eoh>\n<|reserved_4|><|MOSS|>: mean?"):
        dialogue = Dialogue("0", "Be <eom> brief.\n", (Turn(f" {question}"),))
        transcript = speaker.transcript(dialogue)
        if middle:
            transcript.put_none()
        asked, away_from = (names["prompt"](question, level) for level in (5, None))
        assert [asked[0].tolist(), away_from[0].tolist()] == transcript.prompts("moss")
        rules = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 20, "eos_token_id": sorted(speaker.decoder.stops)}
        stock = names["model"].generate(
            asked, attention_mask=torch.ones_like(asked), guidance_scale=2.0, negative_prompt_ids=away_from, **rules
        )[0, asked.shape[1] :]
        ((_, reply),) = speaker.reply_all([(0, dialogue)])
        assert reply.moss == speaker.tokenizer.decode([one for one in stock.tolist() if one not in speaker.decoder.stops])


def test_directory_has_what_the_layout_promises(export: Path) -> None:
    names = {path.name for path in export.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "lineage.json"} <= names
    assert "model-00001-of-00001.safetensors" in names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in names)
    generation = json.loads((export / "generation_config.json").read_text())
    expected = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 40, "repetition_penalty": 1.02}
    assert expected.items() <= generation.items()
    assert generation["eos_token_id"] == MossTokenizer.load(export).eom
