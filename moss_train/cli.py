"""Command lines: from arguments to one typed configuration, then to the stage's `main`. The only importer of Hydra.

    arguments -> drop the launcher's --local_rank -> Hydra composes configs/ -> checked against the dataclasses -> main(config)

Everything that is wrong with a configuration is told in one message, by key, with exit code 2, before torch is loaded. Hydra stops at the
first problem, so when composing fails, the overrides are tried one at a time to find them all (`compose_problems`), and values are
checked key by key (`check`), which also refuses `+foo=1`: Hydra lets that pass its own schema.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
import time
import traceback
import urllib.parse
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from moss_train.errors import ConfigError, MossTrainError, UsageError, report


@dataclass(frozen=True)
class Program:
    """A Hydra program: its primary configuration, the dataclass that types it, and the function that runs it (`module:name`, loaded late).

    Jobs have a folder of their own, `configs/jobs/`: in the stages' folder `model` is a group of architectures, and `model=DIR` would ask
    for a file in it.
    """

    config_name: str
    schema: str
    main: str
    is_job: bool = False
    tool: str | None = None
    """What runs where the first argument is one of `tool_commands`, as for other tools: it looks at what the program made."""
    tool_commands: tuple[str, ...] = ()
    stages: dict[str, Program] = field(default_factory=dict)
    """What runs where `stage=NAME` is given, for a job that serves several stages."""


PROGRAMS = {
    "pretrain": Program("pretrain", "moss_train.pretrain.config:PretrainConfig", "moss_train.pretrain.main:main"),
    "sft": Program("sft", "moss_train.sft.config:SFTConfig", "moss_train.sft.main:main"),
    "pm": Program("pm", "moss_train.pm.config:PMConfig", "moss_train.pm.main:main"),
    "preference": Program("preference", "moss_train.sft.config:SFTConfig", "moss_train.sft.main:preference"),
    "verify_resume": Program("verify_resume", "moss_train.sft.config:VerifySFTConfig", "moss_train.sft.main:verify"),
    "export": Program("export", "moss_train.artifacts.config:ExportJobConfig", "moss_train.artifacts.export:main", is_job=True),
    "quantize": Program("quantize", "moss_train.artifacts.config:QuantizeConfig", "moss_train.artifacts.quantize:main", is_job=True),
    "extend_vocab": Program(
        "extend_vocab", "moss_train.artifacts.config:ExtendVocabConfig", "moss_train.artifacts.extend_vocab:main", is_job=True
    ),
    "prepare": Program(
        "prepare",
        "moss_train.data.prepare.config:PrepareConfig",
        "moss_train.data.prepare.main:main",
        is_job=True,
        tool="moss_train.data.corpus_tool:main",
        tool_commands=("show", "check", "inspect"),
    ),
    "benchmark": Program("benchmark", "moss_train.benchmark.config:BenchmarkConfig", "moss_train.benchmark.main:main", is_job=True),
    "plan": Program("plan", "moss_train.sft.config:PlanSFTConfig", "moss_train.sft.main:plan"),
    "generate": Program("generate", "moss_train.inference.config:GenerateConfig", "moss_train.inference.generate:main", is_job=True),
    "sample": Program("sample", "moss_train.pm.sample_config:SampleConfig", "moss_train.pm.sample:main", is_job=True),
    "rank": Program("rank", "moss_train.pm.rank_config:RankConfig", "moss_train.pm.rank:main", is_job=True),
    "score": Program("score", "moss_train.pm.score_config:ScoreConfig", "moss_train.pm.score_job:main", is_job=True),
    "tag": Program("tag", "moss_train.pm.tag_config:TagConfig", "moss_train.pm.tag:main", is_job=True),
    "evaluate": Program(
        "evaluate",
        "moss_train.evaluate.config:EvaluateConfig",
        "moss_train.evaluate.main:main",
        is_job=True,
        tool="moss_train.evaluate.compare_tool:main",
        tool_commands=("compare",),
    ),
}

PROGRAMS["verify_resume"].stages.update(
    sft=PROGRAMS["verify_resume"],
    pretrain=Program("verify_resume_pretrain", "moss_train.pretrain.config:VerifyPretrainConfig", "moss_train.pretrain.main:verify"),
    pm=Program("verify_resume_pm", "moss_train.pm.config:VerifyPMConfig", "moss_train.pm.main:verify"),
    preference=Program("verify_resume_preference", "moss_train.sft.config:VerifySFTConfig", "moss_train.sft.main:verify_preference"),
)

PLANS = {
    "sft": PROGRAMS["plan"],
    "pretrain": Program("plan_pretrain", "moss_train.pretrain.config:PlanPretrainConfig", "moss_train.pretrain.main:plan"),
    "pm": Program("plan_pm", "moss_train.pm.config:PlanPMConfig", "moss_train.pm.main:plan"),
    # The same memory and time as any fine-tuning.
    "preference": PROGRAMS["plan"],
    "quantize": Program(
        "plan_quantize", "moss_train.artifacts.quantize_plan:PlanQuantizeConfig", "moss_train.artifacts.quantize_plan:plan"
    ),
}
"""Stage -> its `plan` program. A stage adds a line: its own settings with `PlanOptions`, and a function that calls `plan_stage`."""

HYDRA_SETTINGS = {
    "defaults": [{"override /hydra/job_logging": "none"}, {"override /hydra/hydra_logging": "none"}, "_self_"],
    "hydra": {
        "output_subdir": None,
        "job": {"chdir": False},
        "run": {"dir": "."},
        # The run directory of job N of a sweep is `<run.dir>/N`.
        "sweep": {"dir": "${oc.select:run.dir,.}", "subdir": "${hydra.job.num}"},
    },
}
"""No log files or folders of Hydra's own (each rank would write them), no change of directory."""

MUST_BE_GIVEN = {"init_from": "a model directory, or init_from=null for random weights"}
"""What to say of a missing value, where its name does not say it."""

TOOLS = {
    "data": "moss_train.data.tool:main",
    "checkpoint": "moss_train.train.listing:main",
    "lineage": "moss_train.artifacts.lineage_tool:main",
}


def entry() -> None:
    """The `moss-train` command of an installed package: `moss-train sft ...` is `python scripts/sft.py ...`."""
    names = [*PROGRAMS, *TOOLS]
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        asked = sys.argv[1] if len(sys.argv) > 1 else None
        if asked in ("-h", "--help", None):
            print(f"usage: moss-train {{{','.join(names)}}} [key=value ...]\n\nmoss-train NAME --help tells what NAME takes.")
            sys.exit(0 if asked else 2)
        print(f"moss-train: there is no command {asked!r}; expected one of {', '.join(names)}", file=sys.stderr)
        sys.exit(2)
    name = sys.argv.pop(1)
    sys.argv[0] = f"moss-train {name}"
    if name in TOOLS:
        sys.exit(_load(TOOLS[name])(sys.argv[1:]))
    run(name)


def run(name: str) -> None:
    """Runs the program `name` on `sys.argv` and leaves the process with its exit code."""
    program = plan_program(sys.argv[1:]) if name == "plan" else PROGRAMS[name]
    for argument in [one for one in sys.argv[1:] if program.stages and one.startswith("stage=")]:
        sys.argv.remove(argument)
        stage = argument.removeprefix("stage=")
        if stage not in program.stages:
            report(f"there is no {argument}; expected one of {', '.join(program.stages)}", UsageError.exit_code)
            sys.exit(UsageError.exit_code)
        program = program.stages[stage]
    if program.tool is not None and sys.argv[1:2] and sys.argv[1] in program.tool_commands:
        sys.exit(_load(program.tool)(sys.argv[1:]))
    drop_local_rank(sys.argv)
    if sweep := {"-m", "--multirun"} & set(sys.argv):
        # Hydra's parser wants flags before the overrides; where they stand means nothing.
        sys.argv[1:] = ["-m", *(argument for argument in sys.argv[1:] if argument not in sweep)]
    sys.argv[1:] = quote_texts(sys.argv[1:], _load(program.schema), bool(sweep))
    # When a rank is lost, c10d prints a stack for every call of the others; the watchdog says which rank, in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # transformers imports torchao where it is installed, which tells of kernels that it has not found, and torch of how torchao uses it.
    for library in ("torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Hydra prints errors its own way unless it is asked to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    code, rank0_knows = 0, False
    try:
        _run_hydra(program)
    except (MossTrainError, _Stopped) as stopped:
        error = stopped.error if isinstance(stopped, _Stopped) else stopped
        code, rank0_knows = error.exit_code, error.rank0_knows
        if is_rank0():
            report(str(error), code)
    except KeyboardInterrupt:
        code = 130
        if is_rank0():
            report("stopped by Ctrl-C", code)
    except Exception:
        # A defect of the program: the rank that met it shows where.
        code = 1
        traceback.print_exc()
    if code == 0 and "moss_train.train.engine" in sys.modules:
        sys.modules["moss_train.train.engine"].stop()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # A launcher kills the other ranks as soon as one leaves: let rank 0 print first, and leave without
        # destructors, which in a broken process group abort with a code of their own.
        if not is_rank0():
            time.sleep(1.0 if rank0_knows else 3.0)
        os._exit(code)


def plan_program(arguments: list[str]) -> Program:
    """The program that plans the stage in `stage=NAME`, else the one whose name the preset's has in it, else SFT."""
    given = dict(argument.lstrip("+").split("=", 1) for argument in arguments if "=" in argument)
    preset = given.get("config", "")
    # moss_moon_003_base and codegen_2b_zh do not say so.
    of_presets = {"pretrain": ("pretrain", "_base", "_zh"), "sft": ("sft",), "pm": ("_pm",)}
    stage = given.get("stage") or next((name for name, parts in of_presets.items() if any(part in preset for part in parts)), "sft")
    if stage not in PLANS:
        report(f"stage={stage}: there is no such stage; expected one of {', '.join(PLANS)}", UsageError.exit_code)
        sys.exit(UsageError.exit_code)
    return PLANS[stage]


class _Stopped(BaseException):
    """Carries an error of ours through Hydra, which handles `Exception`."""

    def __init__(self, error: MossTrainError):
        self.error = error


def drop_local_rank(argv: list[str]) -> None:
    """Removes the `--local_rank=N` that the DeepSpeed launcher adds (it is in the environment too); Hydra would refuse it."""
    kept, skip = [], False
    for argument in argv:
        if skip:
            skip = False
        elif argument in ("--local_rank", "--local-rank"):
            skip = True
        elif not argument.startswith(("--local_rank=", "--local-rank=")):
            kept.append(argument)
    argv[:] = kept


def quote_texts(arguments: list[str], schema: type, sweep: bool = False) -> list[str]:
    """Puts texts in the quotes that Hydra's grammar wants, so that `data.train=a.jsonl#100` and `prompt="法国的首都是哪里？"` need none.

    Args:
        arguments: The command line without the program.
        schema: Its dataclass; texts are the keys typed as such, and those that take a path or a list of paths (typed Any).
        sweep: Under -m a comma separates the values to sweep over, so a value with one is left as it is.
    """
    hints = dict(_typed_keys(schema))
    named = {name for name, hint in hints.items() if get_origin(hint) is dict and is_dataclass(get_args(hint)[1])}
    numbered, lettered = _dictionaries(schema, float), _dictionaries(schema, str)
    texts = {name for name, hint in hints.items() if hint in (str, str | None, Any)}
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.lstrip("+").split(".")[0] in named and "." in key:
            # A name that is new to a dictionary of dataclasses can only be merged into the whole.
            key, *inner = key.lstrip("+").split(".")
            value = value if sweep and "," in value else _quote_items(value)
            for one in reversed(inner):
                value = f"{{{one}: {value}}}"
            key = f"++{key}"
        elif equals and {key.lstrip("+"), key.lstrip("+").rpartition(".")[0]} & numbered:
            # Hydra takes a name that is new to a dictionary only with this sign.
            key = f"++{key.lstrip('+')}"
        elif equals and {key.lstrip("+"), key.lstrip("+").rpartition(".")[0]} & lettered:
            key = f"++{key.lstrip('+')}"
            value = value if sweep and "," in value else _quote_items(value)
        elif equals and key.lstrip("+") in texts and not (sweep and "," in value):
            if hints[key.lstrip("+")] is not Any:
                value = _quote(value)
            elif listed := re.fullmatch(r"\[(.*)\]", value, flags=re.DOTALL):
                value = f"[{','.join(_quote(item.strip()) for item in listed[1].split(','))}]"
            elif weighted := re.fullmatch(r"\{(.*)\}", value, flags=re.DOTALL):
                pairs = [item.rpartition(":") for item in weighted[1].split(",")]
                if all(key.strip() for key, _, _ in pairs):
                    value = f"{{{', '.join(f'{encode_key(key.strip())}: {_weight_or_path(item)}' for key, _, item in pairs)}}}"
            else:
                value = _quote(value)
        quoted.append(f"{key}{equals}{value}")
    return quoted


def _weight_or_path(value: str) -> str:
    """What stands behind a key of a mixture as it is; a path behind the name of a source, in quotes."""
    value = value.strip()
    is_path = re.search(r"[/#~]|\.\w*[A-Za-z]", value) is not None and not re.fullmatch(r"[-+.\deE_]+", value)
    return _quote(value) if is_path else value


def _quote_items(value: str) -> str:
    """A value with each text in it in quotes: `{path: zh/*.jsonl, language: zh}`, `[py, js]`, or one text."""
    value = value.strip()
    if value[:1] == "{" and value[-1:] == "}":
        pairs = [item.partition(":") for item in _split_items(value[1:-1])]
        return f"{{{', '.join(f'{key.strip()}: {_quote_items(inner)}' for key, _, inner in pairs)}}}"
    if value[:1] == "[" and value[-1:] == "]":
        return f"[{', '.join(map(_quote_items, _split_items(value[1:-1])))}]"
    return value if re.fullmatch(r"true|false|null|[+-]?\d+(\.\d+)?", value) else _quote(value)


def _split_items(text: str) -> list[str]:
    """Items between commas that are not within brackets or quotes."""
    items = re.findall(r"""(?:'[^']*'|"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[^,])+""", text)
    return [item.strip() for item in items if item.strip()]


def _quote(text: str) -> str:
    """A text in single quotes, by Hydra's rules; what is quoted already, null, and nothing stay as they are."""
    if text in ("null", "") or (text[0] in "\"'" and text[-1] == text[0] and len(text) > 1):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


_ENCODED = "@encoded@"
"""Begins a path that stands encoded as a key on Hydra's side of the command line."""


def encode_key(path: str) -> str:
    """A path as a key that Hydra's grammar takes: it has no quotes for keys, and refuses `#`, `~` and all but ASCII."""
    if re.fullmatch(r"[A-Za-z0-9_/.*?+@$|\\-]+", path):
        return path
    return _ENCODED + urllib.parse.quote(path.strip("\"'"), safe="/*").replace("~", "%7E")


def decode_keys(value: Any) -> Any:
    """A dictionary with its keys as they were written."""
    if not isinstance(value, dict):
        return value
    return {urllib.parse.unquote(key[len(_ENCODED) :]) if str(key).startswith(_ENCODED) else key: item for key, item in value.items()}


def is_rank0() -> bool:
    """Whether this process is the one that prints, known from the environment before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def config_dir(program: Program) -> Path:
    """The folder of YAML files: `configs/` of the checkout, or the copy which an installed package carries."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "sft.yaml").is_file():
            return folder / "jobs" if program.is_job else folder
    raise UsageError(f"the configuration files are missing: expected {package / 'configs'}; install the package again")


def _run_hydra(program: Program) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    schema = _load(program.schema)
    ConfigStore.instance().store(name="schema", node=schema, provider="moss_train")
    ConfigStore.instance().store(name="hydra_settings", node=HYDRA_SETTINGS, package="_global_", provider="moss_train")
    composed = False

    def job(raw: DictConfig) -> Any:
        nonlocal composed
        composed = True
        if HydraConfig.get().mode == RunMode.MULTIRUN and "run" in raw:
            OmegaConf.update(raw, "run.dir", f"{raw.run.dir}/{HydraConfig.get().job.num}")
        try:
            replace_whole(raw, schema, list(HydraConfig.get().overrides.task))
            config = check(raw, schema)
            return _load(program.main)(config)
        except MossTrainError as error:
            # Past Hydra, which would print a line of its own and go on with the other jobs of a sweep.
            raise _Stopped(error) from error

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir(program)), config_name=program.config_name)(job)()
    except Exception as error:
        # Hydra raises its own exceptions for most wrong command lines, and plain ones for some (`model=null`).
        if composed:
            raise
        raise ConfigError(compose_problems(program, schema, _overrides(sys.argv[1:])) or [_first_line(error)]) from error


def _load(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def _overrides(arguments: list[str]) -> list[str]:
    """The `key=value` arguments, without the flags and what belongs to them."""
    return [argument for argument in arguments if not argument.startswith("-") and ("=" in argument or argument.startswith("~"))]


def _first_line(error: BaseException) -> str:
    """What an exception of Hydra or OmegaConf says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "Set the environment")))
    return f"{key}: {text}" if key and key not in text else text


def compose_problems(program: Program, schema: type, overrides: list[str]) -> list[str]:
    """Every problem of a command line that Hydra refuses: each override is tried alone on top of those that work, then the rest is
    checked."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    problems: list[str] = []
    kept: list[str] = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir(program))):
        # Choices of groups and presets first: they decide which keys exist.
        for override in sorted(overrides, key=lambda text: not _chooses_file(text, program)):
            try:
                compose(program.config_name, overrides=[*kept, override])
            except Exception as error:
                problems.append(_explain_override(override, error, schema, program))
            else:
                kept.append(override)
        try:
            raw = compose(program.config_name, overrides=kept)
            replace_whole(raw, schema, kept)
            check(raw, schema)
        except ConfigError as error:
            problems += error.problems
        except Exception as error:
            problems.append(_first_line(error))
    return problems


def _chooses_file(override: str, program: Program) -> bool:
    name = override.lstrip("+~").split("=")[0].split("@")[0]
    return (config_dir(program) / name).is_dir()


def _explain_override(override: str, error: BaseException, schema: type, program: Program) -> str:
    """One sentence about an override that Hydra refused."""
    key, _, value = override.lstrip("+~").partition("=")
    if _chooses_file(override, program):
        choices = sorted(path.stem for path in (config_dir(program) / key.split("@")[0]).glob("*.yaml"))
        if value == "null":
            return f"{key}=null: expected one of {', '.join(choices)}"
        if value not in choices:
            return f"{key}={value}: there is no such choice; expected one of {', '.join(choices)}"
    elif key.startswith("deepspeed."):
        return f"{key}: the chosen deepspeed file does not have it; add it with +{override}"
    elif key not in (keys := _keys(schema)) and key.split(".")[0] != "hydra" and not str(error).startswith("mismatched"):
        return _unknown(key, keys)
    return f"{override}: {_first_line(error.__cause__ or error)}"


def _typed_keys(schema: type, prefix: str = "") -> list[tuple[str, Any]]:
    """All keys of a dataclass and of those inside it, with dots, and their types."""
    found: list[tuple[str, Any]] = []
    hints: dict[str, Any] = get_type_hints(schema)
    for item in fields(schema):
        name, hint = prefix + item.name, hints[item.name]
        found.append((name, hint))
        if is_dataclass(hint):
            found += _typed_keys(hint, f"{name}.")  # type: ignore[arg-type]
    return found


def _keys(schema: type) -> list[str]:
    return [name for name, _ in _typed_keys(schema)]


def _unknown(key: str, keys: list[str]) -> str:
    close = (
        difflib.get_close_matches(key, keys, n=1, cutoff=0.6) or [name for name in keys if name.split(".")[-1] == key.split(".")[-1]][:1]
    )
    return f"{key}: there is no such key" + (f"; did you mean {close[0]}?" if close else "; --cfg job shows all keys")


def _dictionaries(schema: type, of: type) -> set[str]:
    """Keys that take a dictionary of numbers, or of texts."""
    return {name for name, hint in _typed_keys(schema) if get_origin(hint) is dict and get_args(hint)[1] is of}


def replace_whole(raw: Any, schema: type, overrides: list[str]) -> None:
    """Lets weights that are given as a whole take the place of those in the preset. Hydra merges the two, and what
    `data.weights={zh: 0.8, en: 0.2}` leaves out would keep its weight; so would a path that `data.train={path: 1}` leaves out.

    Args:
        raw: What Hydra composed; changed.
        schema: The dataclass of the program.
        overrides: Of the command line, in order.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    weighted = _dictionaries(schema, float) | _dictionaries(schema, str) | {name for name, hint in _typed_keys(schema) if hint is Any}
    replaced = set()
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        if key in weighted and isinstance(value, dict):
            OmegaConf.update(raw, key, value, merge=False)
            replaced.add(key)
        elif key.rpartition(".")[0] in replaced:
            OmegaConf.update(raw, key, value, force_add=True)


def check(raw: Any, schema: type) -> Any:
    """The typed configuration in a composed one.

    Args:
        raw: What Hydra composed.
        schema: The dataclass of the program, with a method `problems()`.

    Raises:
        ConfigError: With every unknown key, wrong type, missing value and impossible value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    problems: list[str] = []
    typed = OmegaConf.structured(schema)
    keys = _keys(schema)
    container: Any = OmegaConf.to_container(raw, resolve=False, throw_on_missing=False)
    for key, value in _leaves(container, schema):
        if key not in keys:
            problems.append(_unknown(key, keys))
            continue
        try:
            if value == "???":
                problems.append(f"{key} must be given: {MUST_BE_GIVEN.get(key, f'{key}=VALUE')}")
                # A stand-in, so that the rest can be checked too.
                value = "missing"
            if isinstance(value, str) and "${" in value:
                value = OmegaConf.select(raw, key)
            OmegaConf.update(typed, key, value)
        except OmegaConfBaseException as error:
            problems.append(f"{key}: {_first_line(error).removeprefix(f'{key}: ')}")
    config = OmegaConf.to_object(typed)
    # Values of keys already named as wrong are defaults here; what they would say about themselves is noise.
    named = {problem.split(":")[0].split(" ")[0] for problem in problems}
    problems += [problem for problem in config.problems() if not any(_concerns(problem, key) for key in named)]  # type: ignore[union-attr]
    if problems:
        raise ConfigError(problems)
    return config


def _concerns(problem: str, key: str) -> bool:
    return key in problem.replace("(", " ").replace(",", " ").replace(";", " ").split()


def _leaves(container: dict[str, Any], schema: type, prefix: str = "") -> list[tuple[str, Any]]:
    """The `key.path, value` pairs of a nested dictionary, descending only where the schema has a dataclass."""
    hints: dict[str, Any] = get_type_hints(schema)
    found: list[tuple[str, Any]] = []
    for name, value in container.items():
        inner = hints.get(str(name))
        if is_dataclass(inner) and isinstance(value, dict):
            found += _leaves(value, inner, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found.append((f"{prefix}{name}", decode_keys(value) if inner is Any else value))
    return found
