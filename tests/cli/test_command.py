"""What all commands have in common: help, errors, exit codes, the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from onnxq.cli import main
from onnxq.cli.command import COMMANDS
from onnxq.starting import start
from tests.cli.conftest import Command
from tests.cli.models import Case

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]

STUDYING = (
    "--data -o --output --precision --recipe --target --calibrator --samples --opset --seed "
    "--methods --memory-limit --work-dir --threads --batch-size --keep-overridable "
    "--image-size"
)

OPTIONS = {
    "optimize": (
        "--data -o --output --eval --recipe --target --python --metric --max-drop --min-speedup "
        "--min-agreement "
        "--min-sqnr --keep-failed --report --seed --threads --batch-size --calibration-samples "
        "--calibrator --keep-overridable --opset --image-size --image-mean --image-std "
        "--image-scale --image-layout --image-color --image-resize --max-size-ratio --plan-out "
        "--pin --work-dir --methods --memory-limit --adaptive --workers --scheduler "
        "--hangs-after"
    ),
    "train": (
        "--data -o --output --eval --bits --through --method --loss --features --epochs --lr "
        "--batch-size --accumulate --optimizer --weight-decay --average --schedule --warmup "
        "--augment --patience --device --mixed-precision --resume --target --metric --max-drop "
        "--min-speedup --min-agreement --min-sqnr --max-size-ratio --keep-failed --plan-out "
        "--report --seed --threads --calibration-samples --calibrator --keep-overridable --opset "
        "--pin --memory-limit --image-size"
    ),
    "sensitivity": f"{STUDYING} --method --proxy --report",
    "cost": f"{STUDYING} --cost",
    "plan": f"{STUDYING} --pin --cost --cost-table --budget --min-sqnr --max-latency --max-bytes "
    "--pareto --diff",
    "apply": "-o --output",
    "calibrate": "--data -o --output --from --calibrator --memory-limit --recipe --target "
    "--samples --batch-size --keep-overridable --opset --seed --image-size",
    "compare": "--data --metric --gate --provider --junit --markdown --report --samples "
    "--no-layers --threads --batch-size --image-size",
    "rewrite": "-p --passes -o --output --list --bisect-passes --external-data --keep-overridable",
    "bench": "--data --seconds --provider --threads --batch-size",
    "doctor": "",
    "inspect": "--nodes",
    "targets": "",
    "recipes": "",
    "gguf": "-o --type --external-data",
    "report": "-o --output",
    "batch": (
        "-o --output --recipe --target --methods --max-drop --min-agreement --min-speedup "
        "--min-sqnr --max-size-ratio --seed --memory-limit --workers --scheduler --per-machine "
        "--hangs-after"
    ),
    "watch": (
        "--data --sampling --false-alarms-per-day --requests-per-second --state --metric --seed "
        "--report --image-size"
    ),
}


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A new interpreter, which finds the package as this one does."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_the_commands_are_those_of_the_design() -> None:
    assert set(NAMES) == set(OPTIONS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_every_option(onnxq: Command, name: str, option: str) -> None:
    found = onnxq(name, option)
    assert (found.code, found.err) == (0, "")
    shown = found.out.replace(",", " ").split()
    for wanted in [*OPTIONS[name].split(), "--json", "-q", "--quiet", "-h"]:
        assert any(word.strip("[]") == wanted for word in shown), wanted
    assert f"onnxq {name} " in found.out.partition("examples:")[2]


def test_help_lists_every_command(onnxq: Command) -> None:
    found = onnxq("-h")
    assert found.code == 0
    for module, name in zip(COMMANDS, NAMES, strict=True):
        assert name in found.out
        assert module.HELP.split()[0] in found.out


def test_version(onnxq: Command) -> None:
    found = onnxq("--version")
    assert (found.code, found.out, found.err) == (0, f"onnxq {version('onnxq')}\n", "")


def test_version_of_the_module_in_a_new_process() -> None:
    found = python("-m", "onnxq", "--version")
    assert (found.returncode, found.stdout) == (0, f"onnxq {version('onnxq')}\n")
    assert not found.stderr


def test_the_console_script_starts_as_the_module_does() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    script = EntryPoint("onnxq", project["scripts"]["onnxq"], "console_scripts")
    assert script.load() is start


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("frobnicate",), ("frobnicate", "optimize", "`onnxq -h`")),
        (("inspect",), ("MODEL", "`onnxq inspect -h`")),
        (("inspect", "m.onnx", "--frobnicate"), ("--frobnicate",)),
        (("inspect", "m.onnx", "two\nlines\x1b[31m"), ("two lines\\x1b[31m",)),
        (("optimize", "m.onnx", "-o", "o.onnx"), ("--data", "`onnxq optimize -h`")),
        (("optimize", "m.onnx", "--data", "d.npz"), ("--output",)),
        (("bench", "m.onnx", "--threads", "0"), ("--threads", "'0'")),
        (("bench", "m.onnx", "--threads", "two"), ("--threads", "'two'")),
        (("bench", "m.onnx", "--threads", "1025"), ("--threads", "1024")),
        (("bench", "m.onnx", "--threads", "1" * 5000), ("--threads",)),
        (("bench", "m.onnx", "--batch-size", "-1"), ("--batch-size", "'-1'")),
        (("bench", "m.onnx", "--seconds", "0"), ("--seconds", "'0'")),
        (("bench", "m.onnx", "--seconds", "nan"), ("--seconds", "'nan'")),
        (("compare", "a", "b", "--data", "d", "--samples", "1.5"), ("--samples", "'1.5'")),
        (("inspect", ""), ("MODEL", "empty")),
        (("inspect", "m.onnx", "--json", ""), ("--json", "empty")),
        (("optimize", "m.onnx", "--data", "", "-o", "o.onnx"), ("--data", "empty")),
        (("optimize", "m.onnx", "--data", "d.npz", "-o", ""), ("--output", "empty")),
        (("train", "m.onnx", "--data", "d", "-o", "o", "--lr", "0"), ("--lr", "'0'", "above 0")),
    ],
)
def test_wrong_usage_is_one_sentence(
    onnxq: Command, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    onnxq(*arguments).refused(*parts)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-drop", "little"),
        ("--max-drop", "inf"),
        ("--min-speedup", "nan"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--opset", "0"),
        ("--calibration-samples", "0"),
        ("--image-size", "224"),
        ("--image-size", "0x224"),
        ("--image-mean", "1,two"),
        ("--image-layout", "CHWN"),
        ("--image-color", "CMYK"),
        ("--image-resize", "seam"),
    ],
)
def test_wrong_values_of_optimize_name_the_option(
    onnxq: Command, case: Case, tmp_path: Path, option: str, value: str
) -> None:
    out = tmp_path / "out.onnx"
    found = onnxq("optimize", case.model, "--data", case.data, "-o", out, option, value)
    found.refused(option, value.split(",")[-1].split("x")[0])
    assert not out.exists()


@pytest.mark.parametrize(
    "name",
    sorted(
        {*NAMES} - {"apply", "batch", "doctor", "gguf", "recipes", "report", "targets", "watch"}
    ),
)
def test_a_missing_model_is_named(onnxq: Command, case: Case, tmp_path: Path, name: str) -> None:
    rest: tuple[str | Path, ...] = {
        "optimize": ("--data", case.data, "-o", tmp_path / "o.onnx"),
        "train": ("--data", case.data, "-o", tmp_path / "o.onnx"),
        "calibrate": ("--data", case.data, "-o", tmp_path / "o.json"),
        "compare": (case.model, "--data", case.data),
        "sensitivity": ("--data", case.data),
        "cost": ("-o", tmp_path / "o.json"),
        "plan": ("--data", case.data, "-o", tmp_path / "o.toml"),
        "rewrite": ("-o", tmp_path / "o.onnx"),
    }.get(name, ())
    onnxq(name, tmp_path / "nowhere.onnx", *rest).refused("nowhere.onnx", "does not exist")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_an_unwritable_json_is_refused_before_the_work(
    onnxq: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {
        "optimize": ("m.onnx", "--data", "d.npz", "-o", "o.onnx"),
        "train": ("m.onnx", "--data", "d.npz", "-o", "o.onnx"),
        "calibrate": ("m.onnx", "--data", "d.npz", "-o", "o.json"),
        "compare": ("m.onnx", "c.onnx", "--data", "d.npz"),
        "sensitivity": ("m.onnx", "--data", "d.npz"),
        "cost": ("m.onnx", "-o", "o.json"),
        "plan": ("m.onnx", "--data", "d.npz", "-o", "o.toml"),
        "apply": ("m.onnx", "p.toml", "-o", "o.onnx"),
        "gguf": ("export", "m.onnx", "-o", "o.gguf"),
        "doctor": (),
        "recipes": (),
        "batch": ("m.toml", "-o", "out"),
        "report": ("a.json", "-o", "page.html"),
        "rewrite": ("m.onnx", "-o", "o.onnx"),
        "watch": ("bundle", "--data", "d.npz"),
    }.get(name, ("m.onnx",))
    # The models do not exist: a sentence about the JSON shows that nobody looked for them yet.
    onnxq(name, *arguments, "--json", "no/such/r.json").refused("r.json", "'no/such'")
    (tmp_path / "folder").mkdir()
    onnxq(name, *arguments, "--json", "folder").refused("'folder'", "is a folder")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("optimize", "m", "--data", "d", "-o", "d"), ("-o would replace 'd'",)),
        (("optimize", "m", "--data", "d", "-o", "./d"), ("-o would replace './d'",)),
        (("optimize", "m", "--data", "d", "-o", "o", "--eval", "o"), ("-o would replace 'o'",)),
        (("optimize", "m", "--data", "d", "-o", "o", "--json", "o"), ("-o and --json", "'o'")),
        (("optimize", "m", "--data", "d", "-o", "o", "--json", "m"), ("--json would replace 'm'",)),
        (("optimize", "m", "--data", "d", "-o", "o", "--plan-out", "o"), ("-o and --plan-out",)),
        (("optimize", "m", "--data", "d", "-o", "o", "--plan-out", "m"), ("--plan-out would",)),
        (("sensitivity", "m", "--data", "d", "-o", "d"), ("-o would replace 'd'",)),
        (("cost", "m", "-o", "o", "--json", "o"), ("-o and --json",)),
        (("cost", "m", "-o", "m"), ("-o would replace 'm'",)),
        (("plan", "m", "--data", "d", "-o", "m"), ("-o would replace 'm'",)),
        (("plan", "m", "--data", "d", "-o", "c", "--cost-table", "c"), ("-o would replace 'c'",)),
        (("plan", "--diff", "a", "b", "--json", "b"), ("--json would replace 'b'",)),
        (("apply", "m", "a", "-o", "a"), ("-o would replace 'a'",)),
        (("rewrite", "m", "-o", "o", "--json", "m"), ("--json would replace 'm'",)),
        (("bench", "a", "b", "--json", "b"), ("--json would replace 'b'",)),
        (("inspect", "m", "--json", "m"), ("--json would replace 'm'",)),
        (("compare", "m", "c", "--data", "d", "--junit", "c"), ("--junit would replace 'c'",)),
        (
            ("compare", "m", "c", "--data", "d", "--junit", "j", "--json", "j"),
            ("--junit and --json",),
        ),
        (
            ("compare", "m", "c", "--data", "d", "--report", "r", "--junit", "r/report.json"),
            ("--report and --junit both write 'r/report.json'",),
        ),
        (("compare", "m", "c", "--data", "d", "--markdown", "-"), ("only --json", "--markdown")),
        (("optimize", "m", "--data", "d", "-o", "-"), ("only --json", "-o")),
    ],
)
def test_no_result_replaces_another_file_of_the_command(
    onnxq: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcdm":
        Path(name).write_text(name)
    onnxq(*arguments).refused(*parts)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {n: n for n in "abcdm"}


@pytest.mark.parametrize("level", ["4", "-1", "yes", "1.0"])
@pytest.mark.parametrize("name", ["inspect", "rewrite"])
def test_a_wrong_debug_level_is_refused(
    onnxq: Command,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    level: str,
) -> None:
    monkeypatch.setenv("ONNXQ_DEBUG", level)
    rest = () if name == "inspect" else ("-o", tmp_path / "o.onnx")
    onnxq(name, case.model, *rest).refused("ONNXQ_DEBUG", f"'{level}'", "0, 1, 2 or 3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("level", ["", "0"])
def test_no_debug_level_prints_nothing(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str
) -> None:
    monkeypatch.setenv("ONNXQ_DEBUG", level)
    found = onnxq("rewrite", case.model, "-o", tmp_path / "o.onnx")
    assert (found.code, found.err) == (0, "")


def broken(*_: object, **__: object) -> None:
    raise KeyError("a\nkey")


def test_a_defect_is_one_sentence(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.cli.inspect.inspect", broken)
    found = onnxq("inspect", case.model)
    assert (found.code, found.out) == (70, "")
    assert found.err.startswith("onnxq: error: this is a defect of onnxq (KeyError: ")
    assert found.err.count("\n") == 1
    assert "ONNXQ_DEBUG=1" in found.err


def test_a_defect_shows_where_it_happened_when_debugging(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.cli.inspect.inspect", broken)
    monkeypatch.setenv("ONNXQ_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["inspect", str(case.model)])


def test_no_memory_is_no_defect(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("onnxq.cli.inspect.inspect", greedy)
    onnxq("inspect", case.model).refused("not enough memory")


def test_an_interrupt_ends_with_130(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.cli.inspect.inspect", interrupted)
    found = onnxq("inspect", case.model)
    assert (found.code, found.out, found.err) == (130, "", "onnxq: error: interrupted\n")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals are POSIX's")
@pytest.mark.parametrize("asked", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "arguments",
    [("-m", "onnxq"), ("-c", "import sys; from onnxq.starting import start; sys.exit(start())")],
    ids=["module", "script"],
)
def test_a_request_to_end_is_heard_while_the_command_imports(
    tmp_path: Path, asked: str, arguments: tuple[str, ...]
) -> None:
    # What the interpreter finds instead of the package.
    (tmp_path / "onnx.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{asked})\ntime.sleep(60)\n"
    )
    found = python(
        *arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    )
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "onnxq: error: interrupted\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals are POSIX's")
@pytest.mark.parametrize(
    "again",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["once", "again while cleaning up"],
)
@pytest.mark.parametrize("asked", ["SIGINT", "SIGTERM"])
def test_signals_leave_nothing_in_a_process_of_its_own(
    case: Case, tmp_path: Path, asked: str, again: bool
) -> None:
    script = (
        "import os, shutil, signal, sys, time\n"
        "import onnxq.prepare\n"
        "from onnxq.cli import main\n"
        "remove = shutil.rmtree\n"
        "def press(*_, **__):\n"
        "    shutil.rmtree = press_again\n"
        f"    os.kill(os.getpid(), signal.{asked})\n"
        "    time.sleep(60)\n"
        "def press_again(*arguments, **options):\n"
        f"    {again} and os.kill(os.getpid(), signal.SIGTERM)\n"
        "    remove(*arguments, **options)\n"
        "onnxq.prepare.calibrate = press\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out, temporary = tmp_path / "out.onnx", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    arguments = ("optimize", str(case.model), "--data", str(case.data), "-o", str(out))
    found = python("-c", script, *arguments, "--recipe", "int8", env=environment)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "onnxq: error: interrupted\n"
    assert list(tmp_path.iterdir()) == [temporary]
    # onnxruntime keeps a hidden file of its own there.
    assert not list(temporary.glob("onnxq*"))


def test_handlers_of_signals_are_put_back(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []

    def look(*_: object) -> None:
        during.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.cli.inspect.inspect", look)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, handler)
            onnxq("inspect", case.model)
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert callable(during[0])
    assert during[1] is signal.SIG_IGN, "one that is set is kept"


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
@pytest.mark.parametrize(
    "arguments",
    [("--nodes",), *(pytest.param(a, marks=pytest.mark.slow) for a in (("--json", "-"), ("-h",)))],
    ids=["table", "json", "help"],
)
def test_a_reader_that_leaves_is_no_error(case: Case, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "onnxq", "inspect", str(case.candidate), *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writing)
    assert (found.returncode, found.stderr) == (0, b"")


def test_a_gate_fails_even_when_nobody_reads_of_it(case: Case) -> None:
    script = (
        "import os, sys\n"
        "from onnxq.cli import main\n"
        "from onnxq.runtime import Backend, interleaved\n"
        "Backend.time = staticmethod(lambda *a, seconds: interleaved(*a, rounds=5))\n"
        "reading, writing = os.pipe()\n"
        "os.close(reading)\n"
        "os.dup2(writing, 1)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ("compare", str(case.model), str(case.candidate), "--data", str(case.data))
    found = python("-c", script, *arguments, "--gate", "sqnr>=200", "--no-layers")
    assert (found.returncode, found.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_one_sentence(case: Case) -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "onnxq", "inspect", str(case.model)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert found.returncode == 2
    assert found.stderr.startswith("onnxq: error: cannot write to standard output: ")
    assert found.stderr.count("\n") == 1


def test_without_a_command_it_prints_its_help(onnxq: Command) -> None:
    alone, asked = onnxq(), onnxq("-h")
    assert alone == asked and alone.code == 0
    assert all(name in alone.out for name in NAMES)
