"""The command line itself: exit statuses, one-line errors, pipes and interrupts, `fastres info`."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastres
import fastres.data
from fastres import cli
from fastres.backends import registry, verification
from fastres.cli import errors, info
from fastres.measure.environment import environment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def start(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """`python -m fastres` as its own process, of the package under test wherever it is."""
    path = os.pathsep.join([str(Path(fastres.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "fastres", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def many(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a `classify` that is at work for far longer than it takes to stop it."""
    fastres.data.photo().resize((64, 48)).save(tmp_path / "small.png")
    torch.save(fastres.resnet18(num_classes=4).state_dict(), tmp_path / "weights.pth")
    images = ["small.png"] * 5000
    return "classify", *images, "--weights", "weights.pth", "--model", "resnet18", "--batch", "1"


def test_help_lists_every_command(main: Run) -> None:
    status, out, err = main("--help")
    assert (status, err) == (0, "")
    for name in cli.COMMANDS:
        assert f"\n    {name}" in out
    assert "exit status:" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_has_a_description_and_examples(
    main: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = main(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: fastres {command}")
    assert f"examples:\n  fastres {command}" in out
    assert max(map(len, out.splitlines())) <= 120


def test_version(main: Run) -> None:
    assert main("--version") == (0, f"fastres {fastres.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: COMMAND (see 'fastres --help')"),
        (["fly"], "argument COMMAND: invalid choice: 'fly'"),
        (["info", "--fast"], "unrecognized arguments: --fast (see 'fastres --help')"),
        (["info", "--js"], "unrecognized arguments: --js"),
        (["classify"], "the following arguments are required: IMAGE|FOLDER, --weights (see 'fastres classify --help')"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(main: Run, arguments: list[str], told: str) -> None:
    status, out, err = main(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("fastres: error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (errors.UsageError("--n: expected 1, got 2"), 2, "fastres: error: --n: expected 1, got 2\n"),
        (errors.CommandError("no luck"), 1, "fastres: error: no luck\n"),
        (
            RuntimeError("CUDA error:\n  out of memory\n"),
            1,
            "fastres: error: RuntimeError: CUDA error: out of memory\n",
        ),
        (ValueError("\x1b]0;title\x07"), 1, "fastres: error: ValueError: \\x1b]0;title\\x07\n"),
        (KeyboardInterrupt(), 130, "fastres: interrupted\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_a_command_raises(
    main: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int, told: str
) -> None:
    def fail(args: Any) -> None:
        raise raised

    monkeypatch.setattr(info, "run", fail)
    assert main("info") == (status, "", told)


def test_traceback_on_request(main: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: Any) -> None:
        raise errors.CommandError("no luck")

    monkeypatch.setattr(info, "run", fail)
    monkeypatch.setenv("FASTRES_DEBUG", "1")
    status, _, err = main("info")
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith("\nfastres: error: no luck\n")


def test_printable_keeps_text_and_disarms_the_rest() -> None:
    assert errors.printable("Ärger 猫 [bold]") == "Ärger 猫 [bold]"
    assert errors.printable("a\nb\x1b[31m\u202e\udcff") == "a\\nb\\x1b[31m\\u202e\\udcff"


def test_every_command_module_keeps_the_contract() -> None:
    for name in cli.COMMANDS:
        module = __import__(f"fastres.cli.{name}", fromlist=["NAME"])
        assert name == module.NAME
        assert module.HELP
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert parser.description
        assert parser.epilog
        assert callable(module.run)


def test_the_process_exits_with_the_status(tmp_path: Path) -> None:
    process = start("info", "--jason", cwd=tmp_path, stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err == "fastres: error: unrecognized arguments: --jason (see 'fastres --help')\n"


def test_interrupt_is_one_line_and_status_130(tmp_path: Path, many: tuple[str, ...]) -> None:
    process = start(*many, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "small.png\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "fastres: interrupted\n")


def test_a_reader_that_leaves_is_quiet(tmp_path: Path, many: tuple[str, ...]) -> None:
    process = start(*many, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "small.png\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line_and_status_1(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("info", cwd=tmp_path, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == "fastres: error: OSError: [Errno 28] No space left on device\n"


def test_environment_is_json_with_the_versions_in_use() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["fastres"] == fastres.__version__
    assert facts["versions"]["cuda"] == torch.version.cuda
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert len(facts["gpus"]) == torch.cuda.device_count()


def test_info_names_every_backend_and_why_one_is_missing(main: Run) -> None:
    status, out, err = main("info")
    assert (status, err) == (0, "")
    for name, why in fastres.backends().items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"backend {name} "))
        assert (f"unavailable: {why}" if why else "available") in line
    status, out, _ = main("info", "--json")
    assert status == 0
    assert {name: b["unavailable"] for name, b in json.loads(out)["backends"].items()} == fastres.backends()


def test_info_tells_where_our_kernels_are_verified(main: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    monkeypatch.setattr(verification, "_packaged", frozenset)
    verification.records.cache_clear()
    try:
        assert _line(main("info")[1], "backend triton").endswith("; emulated, not yet verified on hardware")
        fingerprint = registry.find("triton").fingerprint()
        for arch, source in (("sm_90", fingerprint), ("sm_80", fingerprint), ("sm_100", "of other sources")):
            verification.add(verification.Record("triton", arch, str(source)))
        assert _line(main("info")[1], "backend triton").endswith("; verified on sm_80, sm_90 (inference)")
        facts = json.loads(main("info", "--json")[1])["backends"]
    finally:
        monkeypatch.undo()
        verification.records.cache_clear()
    assert facts["triton"]["verified"] == ["sm_80", "sm_90"]
    assert facts["cuda"]["verified"] == []
    assert facts["cudnn"]["verified"] is facts["onednn"]["verified"] is None


def _line(text: str, start: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{start} "))
    return line


def test_info_tells_the_native_module_and_that_no_gpu_has_run_its_kernels(
    main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Native:
        @staticmethod
        def build_info() -> dict[str, Any]:
            kernels = {"_Z4conv1": "conv_sm80", "_Z4conv2": "conv_sm80", "_Z4stem": "stem"}
            built = {"compiler": "g++ 12", "cuda": "13.0", "cuda_missing": "", "archs": ["80"]}
            return {**built, "kernels": kernels, "emulator": True}

    monkeypatch.setattr("fastres.native.kernel_hash", lambda: "0" * 16)
    monkeypatch.setattr("fastres.native.load", lambda: Native)
    _, out, _ = main("info")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "native module built with g++ 12, CUDA 13.0, with emulator" in lines
    assert "conv_sm80 2 variants: emulated, not yet verified on hardware" in lines
    assert "stem 1 variant: emulated, not yet verified on hardware" in lines


def test_info_tells_a_broken_native_module_and_goes_on(main: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("it is there but doesn't load")

    monkeypatch.setattr("fastres.native.load", broken)
    status, out, _ = main("info")
    assert status == 0
    assert "none: it is there but doesn't load" in out
    assert "backend reference" in out
