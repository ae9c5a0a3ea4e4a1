"""The package as it is shipped, what importing it costs, and that imports run one way."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastres
import fastres.data

PACKAGE = Path(fastres.__file__).parent
ROOT = Path(__file__).resolve().parents[1]

# CONTRIBUTING's rule: each imports from itself, from those after it, and from the modules that are below all of them.
CHAIN = (("models",), ("fused", "eligibility"), ("ops",), ("backends",), ("kernels",))
ABOVE = ("cli", "measure", "optimize", "explain", "selftest", "train")  # built of the chain: none of it may know them

Shipped = tuple[set[str], Any, dict[str, str]]  # names of files, metadata, commands


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Names and metadata of the wheel: of the one installed, or else of one made of this tree."""
    try:
        installed = metadata.distribution("fastres")
    except metadata.PackageNotFoundError:
        installed = None
    # Neither an egg-info beside the sources nor an editable installation says what is shipped.
    if installed is not None and "fastres/__init__.py" in (installed.read_text("RECORD") or ""):
        names = {str(file) for file in installed.files}
        return names, installed.metadata, {e.name: e.value for e in installed.entry_points}
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so")
    sources = shutil.copytree(ROOT, folder / "sources", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sources]
    subprocess.run(command, check=True, env={**os.environ, "FASTRES_CUDA": "0"})
    with zipfile.ZipFile(next(folder.glob("fastres-*.whl"))) as wheel:
        wheel.extractall(folder)
        (built,) = metadata.distributions(path=[str(folder)])
        return set(wheel.namelist()), built.metadata, {e.name: e.value for e in built.entry_points}


def test_the_wheel_holds_every_module_the_data_and_the_native_module(shipped: Shipped) -> None:
    names, _, _ = shipped
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastres").rglob("*.py")}
    assert sources <= names
    assert {"fastres/py.typed", "fastres/data/chelsea.jpg", "fastres/data/README.md"} <= names
    assert [name for name in names if name.startswith("fastres/_C.")]
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_what_was_built_in_place_is_not_packaged(tmp_path: Path) -> None:
    """Old PTX beside the sources would end in the wheel, and setuptools warn of a package that nobody listed."""
    left_out = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "__pycache__", "*.so", "ptx", "csrc", "tests", "docs"
    )
    sources = shutil.copytree(ROOT, tmp_path / "sources", ignore=left_out)
    (sources / "fastres" / "ptx").mkdir()
    (sources / "fastres" / "ptx" / "old.ptx").touch()
    command = [sys.executable, "setup.py", "build_py", "--build-lib", tmp_path / "built"]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=True)
    assert "absent from the `packages`" not in done.stdout + done.stderr
    assert (tmp_path / "built" / "fastres" / "data" / "tuning.json").is_file()
    assert not (tmp_path / "built" / "fastres" / "ptx").exists()


def test_metadata(shipped: Shipped) -> None:
    _, described, commands = shipped
    assert described["Name"] == "fastres"
    assert described["License-Expression"] == "BSD-3-Clause"
    assert described["Requires-Python"] == ">=3.10"
    required = {r.split(">")[0].split(";")[0] for r in described.get_all("Requires-Dist") if "extra ==" not in r}
    assert required == {"torch", "torchvision", "triton", "filelock", "numpy", "pillow", "rich"}
    assert commands == {"fastres": "fastres.cli:main"}


def test_every_public_name_is_there_and_documented_in_order() -> None:
    assert len(set(fastres.__all__)) == len(fastres.__all__)
    for name in fastres.__all__:
        assert getattr(fastres, name) is not None
    scope: dict[str, Any] = {}
    exec("from fastres import *", scope)
    assert set(fastres.__all__) <= set(scope)
    assert (PACKAGE / "py.typed").is_file()


def test_the_photograph_is_small_free_and_rgb() -> None:
    photo = fastres.data.photo()
    assert (photo.mode, photo.size) == ("RGB", (451, 300))
    assert np.asarray(photo).std() > 30  # a picture, not a blank
    assert (PACKAGE / "data" / "chelsea.jpg").stat().st_size < 60_000
    assert "CC0" in (PACKAGE / "data" / "README.md").read_text()


def test_importing_fastres_loads_no_more_than_torchvision_does() -> None:
    code = (
        "import sys, torchvision; before = set(sys.modules); import fastres;"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    assert "fastres.models.resnet" in loaded
    heavy = {"timm", "rich", "matplotlib", "triton", "PIL", "skimage", "_pytest"}
    assert not [name for name in loaded if name.split(".")[0] in heavy]
    assert not [name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor", "fastres.cli"))]


def test_importing_fastres_again_replaces_its_operators() -> None:
    code = (
        "import gc, sys, torch, fastres; from torchvision.models import resnet18\n"
        "plain, x = resnet18().eval(), torch.rand(2, 3, 40, 40)\n"
        "def check(model):\n"
        "    model.load_state_dict(plain.state_dict())\n"
        "    with torch.no_grad(): torch.testing.assert_close(model.eval()(x), plain(x), rtol=1e-4, atol=1e-4)\n"
        "    model.train()(x).sum().backward()\n"
        "    assert model.conv1.weight.grad.isfinite().all()\n"
        "old = fastres.resnet18(); check(old)\n"
        "for again in range(2):\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'fastres']: del sys.modules[name]\n"
        "    import fastres; gc.collect()\n"
        "    model = fastres.resnet18(); check(model); check(old)\n"
        "    with torch.no_grad(): layers = fastres.explain(model.eval(), x).layers\n"
        "    assert {layer.backend for layer in layers} == {'onednn'}, layers\n"
    )
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "FASTRES_BACKEND": "onednn"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) for each module of fastres that the file imports, functions' own imports included."""
    package = path.parent.relative_to(PACKAGE.parent).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def test_imports_are_read_as_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "fastres")
    (tmp_path / "fastres" / "ops").mkdir(parents=True)
    file = tmp_path / "fastres" / "ops" / "conv.py"
    file.write_text("import fastres.cli\nfrom .. import layer\nfrom ..models.resnet import ResNet\nfrom .a import b\n")
    found = [(1, "fastres.cli"), (2, "fastres.layer"), (3, "fastres.models.resnet.ResNet"), (4, "fastres.ops.a.b")]
    assert list(imports(file)) == found


def test_imports_run_one_way() -> None:
    seen = set()
    wrong = []
    for depth, names in enumerate(CHAIN):
        not_below = [name for above in CHAIN[:depth] for name in above] + list(ABOVE)
        for name in names:
            files = [PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")]
            for file in filter(Path.is_file, files):
                seen.add(name)
                for line, module in imports(file):
                    parts = module.split(".")
                    if parts[0] == "fastres" and parts[1] in not_below:
                        wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {module}")
    assert {"models", "fused", "ops", "backends"} <= seen
    assert wrong == []


def test_ci_tests_with_the_oldest_versions_that_are_allowed() -> None:
    described = (ROOT / "pyproject.toml").read_text()
    oldest = dict(line.split("==") for line in (ROOT / ".ci" / "oldest.txt").read_text().split("\n") if "==" in line)
    assert oldest.keys() == {"torch", "torchvision", "triton"}
    for name, version in oldest.items():
        assert f'"{name}>={version.removesuffix(".0")}' in described, name
    assert all((ROOT / file).is_file() for file in (ROOT / ".ci" / "oldest-tests.txt").read_text().split())
