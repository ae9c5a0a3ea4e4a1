"""`fastres classify`: the same classes as torchvision's own model gives, and every input that can be wrong."""

import io
import json
import os
import pickle
import sys
import urllib.error
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import randomize
from PIL import Image
from tolerance import assert_right, to_oracle
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

import fastres
import fastres.data
from fastres import cli
from fastres.backends.reference import Reference
from fastres.cli import arguments as shared
from fastres.cli import images, weights

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomize(resnet18(num_classes=10)).eval()


@pytest.fixture(scope="module")
def checkpoint(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ten.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def classify(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> Run:
    """Runs `fastres classify` in this process: (exit status, stdout, stderr). resnet18 with 10 classes unless told."""

    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["classify", *map(str, arguments)]
        if "--weights" not in words:
            words += ["--weights", str(checkpoint), "--model", "resnet18"]
        status = cli.main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    fastres.data.photo().save(path)
    return path


def expected(model: nn.Module, *pictures: Image.Image) -> Tensor:
    """Probabilities by torchvision alone, in the model's dtype: [pictures, classes]."""
    transform = ResNet18_Weights.DEFAULT.transforms()
    batch = torch.stack([transform(picture) for picture in pictures])
    with torch.inference_mode():
        return model(batch.to(next(model.parameters()).dtype)).softmax(1)


def best(model: nn.Module) -> int:
    """The most probable class of the photograph."""
    return int(expected(model, fastres.data.photo()).argmax())


# --- what it prints --------------------------------------------------------------------------------------------------


def test_same_probabilities_as_torchvision(classify: Run, net: nn.Module, tmp_path: Path) -> None:
    photo = fastres.data.photo()
    pictures = [photo, photo.rotate(180), photo.convert("L").convert("RGB"), photo.resize((200, 400))]
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    status, out, err = classify(*paths, "--json", "--top", 99)
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["path"] for answer in answers] == list(map(str, paths))
    got = torch.empty(len(pictures), 10)
    for row, answer in zip(got, answers, strict=True):
        values = [p["probability"] for p in answer["predictions"]]
        assert values == sorted(values, reverse=True)
        assert [p["label"] for p in answer["predictions"]] == [f"class {p['class']}" for p in answer["predictions"]]
        row[[p["class"] for p in answer["predictions"]]] = torch.tensor(values)
    assert_right(got, expected(net, *pictures), expected(to_oracle(net), *pictures))


def test_text_is_the_path_and_a_line_a_class(classify: Run, cat: Path, net: nn.Module) -> None:
    status, out, err = classify(cat, "--top", 2)
    assert (status, err) == (0, "")
    values, classes = expected(net, fastres.data.photo())[0].topk(2)
    lines = [f"  {v:6.1%}  class {c}" for v, c in zip(values.tolist(), classes.tolist(), strict=True)]
    assert out.splitlines() == [str(cat), *lines]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_folders_are_searched_in_order_and_hidden_files_left_out(
    classify: Run, cat: Path, tmp_path: Path, batch: int
) -> None:
    for name in ("b/z.JPG", "b/deep/a.webp", "a.bmp", ".hidden.png", ".git/x.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            fastres.data.photo().resize((40, 30)).save(tmp_path / name)
    status, out, err = classify(tmp_path, cat, "--json", "--batch", batch)
    assert (status, err) == (0, "")
    found = [os.path.relpath(json.loads(line)["path"], tmp_path) for line in out.splitlines()]
    assert found == ["a.bmp", "cat.png", "b/z.JPG", "b/deep/a.webp", "cat.png"]


def test_labels_from_a_file(classify: Run, cat: Path, net: nn.Module, tmp_path: Path) -> None:
    names = [f"naïve <{i}>" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    _, out, _ = classify(cat, "--labels", tmp_path / "names.txt", "--top", 1)
    assert out.splitlines()[1].endswith("  " + names[best(net)])


def test_nothing_of_a_name_reaches_the_terminal_as_a_command(classify: Run, cat: Path, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m[red]\nb.png"
    path.write_bytes(cat.read_bytes())
    (tmp_path / "names.txt").write_text("\x1b]0;owned\x07[bold]\n" * 10)
    _, out, _ = classify(path, "--labels", tmp_path / "names.txt", "--top", 1)
    first, second = out.splitlines()
    assert first.endswith("a\\x1b[31m[red]\\nb.png")
    assert second.endswith("\\x1b]0;owned\\x07[bold]")
    status, out, err = classify(str(path) + "?")
    assert (status, out) == (1, "")
    assert "\x1b" not in err


def test_a_terminal_on_stderr_shows_a_bar_and_leaves_stdout_alone(
    classify: Run, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain, nothing = classify(cat, "missing.png", cat)
    assert nothing == "fastres: skipped missing.png: no such file\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, out, err = classify(cat, "missing.png", cat)
    assert out == plain
    assert "classifying" in err
    assert "3/3" in err
    assert "skipped missing.png" in err


def test_on_one_terminal_results_go_above_the_bar(classify: Run, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain, _ = classify(cat)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    status, out, err = classify(cat)
    assert (status, out) == (0, "")  # both are one terminal: the bar's writer carries the lines
    for line in plain.splitlines():
        assert line + "\n" in err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(classify: Run, cat: Path, dtype: str) -> None:
    status, out, _ = classify(cat, "--dtype", dtype, "--json")
    assert status == 0
    assert 0 < json.loads(out)["predictions"][0]["probability"] <= 1


def test_the_backend_asked_for_runs(classify: Run, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    conv = Reference.conv
    monkeypatch.setattr(Reference, "conv", lambda self, *a, **k: ran.append(1) or conv(self, *a, **k))
    assert classify(cat, "--backend", "reference")[0] == 0
    assert len(ran) == 20


# --- images ----------------------------------------------------------------------------------------------------------


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(keep: int) -> bytes:
    buffer = io.BytesIO()
    fastres.data.photo().save(buffer, "JPEG")
    return buffer.getvalue()[:keep]


def tiff_of_floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"", "not an image in a known format", id="empty"),
        pytest.param(b"not an image at all", "not an image in a known format", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known", id="eps"),
        pytest.param(jpeg(4000), "image file is truncated", id="truncated-jpeg"),
        pytest.param(png((64, 64))[:60], "truncated", id="truncated-png"),
        pytest.param(png((64, 64)).replace(b"IDAT", b"IDXT"), "", id="damaged-png"),
        pytest.param(png((10000, 10000), "1"), "too large: more than 89478485 pixels", id="gigantic"),
        pytest.param(png((60000, 40000), "1"), "too large: more than 89478485 pixels", id="more-gigantic"),
        pytest.param(png((1, 5000)), "too elongated: 1 x 5000 pixels", id="elongated"),
        pytest.param(tiff_of_floats(), "floating-point pixels", id="floats"),
    ],
)
def test_an_image_that_cannot_be_read_is_told_and_skipped(
    classify: Run, cat: Path, tmp_path: Path, content: Any, told: str
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    status, out, err = classify(bad, cat, "--json")
    assert status == 1
    assert err.startswith(f"fastres: skipped {bad}: ")
    assert told in err
    assert err.count("\n") == 1
    first, second = map(json.loads, out.splitlines())
    assert f"fastres: skipped {bad}: {first['error']}\n" == err
    assert second["path"] == str(cat)
    assert second["predictions"]


def test_paths_that_are_no_file_are_told_and_skipped(classify: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.png")
    names = ("missing.png", "empty", "pipe.png", "dangling.png")
    status, out, err = classify(*(tmp_path / name for name in names), cat)
    assert status == 1
    assert out.startswith(f"{cat}\n")
    reasons = ["no such file", "no image in this folder", "not a regular file", "No such file or directory"]
    for line, name, reason in zip(err.splitlines(), names, reasons, strict=True):
        assert line.startswith(f"fastres: skipped {tmp_path / name}: {reason}")


def test_without_a_usable_input_no_weights_are_loaded(
    classify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "load", lambda *args: pytest.fail("loaded"))
    status, out, err = classify(tmp_path, tmp_path / "missing.png", "--json")
    assert status == 1
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"path", "error"}] * 2
    assert err.count("skipped") == 2


def test_what_may_not_be_opened_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classify: Run, cat: Path
) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(images.Image, "open", denied)
    assert classify(cat)[2] == f"fastres: skipped {cat}: Permission denied\n"
    monkeypatch.setattr(os, "scandir", denied)
    assert classify(tmp_path)[2] == f"fastres: skipped {tmp_path}: Permission denied\n"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    photo = fastres.data.photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown turned 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(images.decode(str(tmp_path / "turned.png")), photo)


def test_a_damaged_exif_block_does_not_damage_the_image(tmp_path: Path) -> None:
    fastres.data.photo().save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with images.strict_pillow(), warnings.catch_warnings(record=True) as shown:
        decoded = images.decode(str(tmp_path / "x.png"))
    assert not shown
    assert np.array_equal(decoded, fastres.data.photo())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_the_rgb_of_what_is_seen(tmp_path: Path, mode: str) -> None:
    photo = fastres.data.photo().resize((90, 60))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
        assert image.mode == mode
        want = photo.convert("L").convert("RGB")
    else:
        image = photo.convert(mode)
        want = image.convert("RGB")
    image.save(tmp_path / "x.tiff")
    got = images.decode(str(tmp_path / "x.tiff"))
    assert got.mode == "RGB"
    assert np.array_equal(got, want)


def test_pgm_of_16_bits(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 65535\n" + (grey * 257).astype(">u2").tobytes())
    assert np.array_equal(np.asarray(images.decode(str(tmp_path / "x.pgm")))[..., 0], grey)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (9, 9), (0, 0, 0, 0)).convert(mode)
    image.save(tmp_path / "x.png", **({"transparency": 0} if mode == "P" else {}))
    assert np.asarray(images.decode(str(tmp_path / "x.png"))).min() == 255


def test_no_more_is_decoded_early_than_was_asked_for(cat: Path) -> None:
    taken = []

    def inputs() -> Iterator[images.Input]:
        for index in range(100):
            taken.append(index)
            yield images.Input(str(cat))

    stream = images.preprocessed(inputs(), lambda image: torch.zeros(1), workers=2, ahead=5)
    for done in range(1, 4):
        next(stream)
        assert len(taken) == done + 5
    stream.close()


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"module." + key: value for key, value in state.items()}},
        lambda state: {"_orig_mod.module." + key: value.half() for key, value in state.items() if "num_b" not in key},
    ],
)
def test_checkpoints_of_training_scripts(
    classify: Run, cat: Path, net: nn.Module, tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "wrapped.pth")
    status, out, err = classify(cat, "--weights", tmp_path / "wrapped.pth", "--model", "ResNet18", "--top", 1, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["predictions"][0]["class"] == best(net)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not a checkpoint of tensors: torch.load(weights_only=True) says: "),
        (b"not a checkpoint", "is not a checkpoint of tensors"),
        (pickle.dumps({"a": print}), "is not a checkpoint of tensors"),
        ([1, 2], "holds a list, expected a state dict, or one under 'state_dict', 'model_state_dict', 'model'"),
        ({}, "holds a dict with the keys (none)"),
        ({"epoch": 1, "optimizer": {}}, "holds a dict with the keys 'epoch', 'optimizer'"),
    ],
)
def test_a_file_that_is_no_checkpoint(classify: Run, cat: Path, tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    status, out, err = classify(cat, "--weights", path)
    assert (status, out) == (1, "")
    assert err.startswith(f"fastres: error: {str(path)!r} ")
    assert told in err
    assert err.count("\n") == 1


def test_a_truncated_checkpoint_and_a_whole_model(
    classify: Run, cat: Path, checkpoint: Path, net: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "bad.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    torch.save(net, tmp_path / "model.pth")
    for name in ("bad.pth", "model.pth"):
        status, out, err = classify(cat, "--weights", tmp_path / name)
        assert (status, out) == (1, "")
        assert "is not a checkpoint of tensors" in err


def test_a_checkpoint_of_another_model_is_told_with_the_one_it_fits(classify: Run, cat: Path, checkpoint: Path) -> None:
    status, out, err = classify(cat, "--weights", checkpoint)
    assert (status, out) == (1, "")
    differences = "layer1.0.conv1.weight is [64, 64, 3, 3], expected [64, 64, 1, 1]; layer1.0.conv3.weight is missing; "
    assert err.startswith(f"fastres: error: {checkpoint} does not fit resnet50: {differences}")
    assert err.endswith(" more (it fits --model resnet18)\n")


def test_a_checkpoint_that_fits_no_model(classify: Run, cat: Path, net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict() | {"extra.weight": torch.zeros(1)}
    state["bn1.weight"] = torch.ones(64, dtype=torch.int32)
    torch.save(state, tmp_path / "odd.pth")
    _, _, err = classify(cat, "--weights", tmp_path / "odd.pth", "--model", "resnet18")
    assert err.endswith("resnet18: bn1.weight is torch.int32, expected torch.float32; extra.weight is unexpected\n")


@pytest.mark.parametrize("name", ["fc.bias", "conv1.weight", "layer3.0.bn2.running_mean"])
def test_an_output_that_is_not_finite_is_told(
    name: str, classify: Run, cat: Path, net: nn.Module, tmp_path: Path
) -> None:
    state = net.state_dict()
    state[name] = torch.full_like(state[name], float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    status, out, err = classify(cat, "--weights", tmp_path / "nan.pth", "--model", "resnet18")
    assert (status, out) == (1, "")
    assert err == f"fastres: skipped {cat}: the model's output is not finite in torch.float32\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """torch.hub with an empty cache and no network; gives the file that resnet18's weights are cached in."""

    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    before = torch.hub._hub_dir
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.hub._hub_dir = before


def test_weights_by_name_with_imagenet_labels(classify: Run, cat: Path, hub: Path) -> None:
    model = randomize(resnet18()).eval()
    torch.save(model.state_dict(), hub)
    label = ResNet18_Weights.DEFAULT.meta["categories"][best(model)]
    for name in ("ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"):
        status, out, err = classify(cat, "--weights", name, "--top", 1)
        assert (status, err) == (0, "")
        assert out.splitlines()[1].endswith(f"  {label}")
    assert classify(cat, "--weights", "DEFAULT", "--model", "resnet18", "--top", 1) == (0, out, "")


def test_offline_is_one_line(classify: Run, cat: Path, hub: Path) -> None:
    status, out, err = classify(cat, "--weights", "ResNet18_Weights.DEFAULT")
    assert (status, out) == (1, "")
    (line,) = (line for line in err.splitlines() if not line.startswith("Downloading: "))
    assert line.startswith("fastres: error: cannot download ResNet18_Weights.IMAGENET1K_V1 from https://")
    assert f"put the file into {hub.parent}" in line


def test_a_damaged_download_is_told(classify: Run, cat: Path, hub: Path) -> None:
    hub.write_bytes(b"half a file")
    status, out, err = classify(cat, "--weights", "ResNet18_Weights.DEFAULT")
    assert (status, out) == (1, "")
    assert err.startswith("fastres: error: cannot read ResNet18_Weights.IMAGENET1K_V1, downloaded from https://")
    assert err.count("\n") == 1


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "resnet51"], "argument --model: unknown model 'resnet51', expected one of resnet18, resnet34"),
        (["--dtype", "int8"], "argument --dtype: unknown dtype 'int8', expected one of float32, bfloat16, float16"),
        (["--backend", "tpu"], "argument --backend: unknown backend 'tpu', expected one of auto, reference"),
        (["--device", "gpu"], "argument --device: unknown device 'gpu', expected cpu, cuda or cuda:N"),
        (["--device", "meta"], "argument --device: unknown device 'meta', expected cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "argument --device: device 'cuda:99' is not available: PyTorch finds "),
        (["--top", "0"], "argument --top: expected a whole number from 1 to 1000, got '0'"),
        (["--batch", "many"], "argument --batch: expected a whole number from 1 to 1024, got 'many'"),
        (["--weights", "V9"], "argument --weights: 'V9' is not there; expected a checkpoint file, or for resnet50 one"),
        (["--weights", "."], "argument --weights: '.' is a directory; expected a checkpoint file, or for resnet50 one"),
        (
            ["--weights", "ResNet34_Weights.DEFAULT", "--model", "resnet18"],
            "argument --weights: 'ResNet34_Weights.DEFAULT' belongs to resnet34, but --model is resnet18",
        ),
        (["--labels", "missing.txt"], "argument --labels: cannot read 'missing.txt': No such file or directory"),
    ],
)
def test_wrong_usage_names_the_argument_its_value_and_what_was_expected(
    classify: Run, cat: Path, arguments: list[str], told: str
) -> None:
    status, out, err = classify(cat, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"fastres: error: {told}")
    assert err.count("\n") == 1


def test_labels_that_do_not_fit(classify: Run, cat: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("one\ntwo\n")
    status, _, err = classify(cat, "--labels", path)
    assert status == 2
    assert err == f"fastres: error: argument --labels: {str(path)!r} has 2 lines, expected one for 10 classes\n"
    path.write_bytes(b"\xff\xfe\xff")
    status, _, err = classify(cat, "--labels", path)
    assert status == 2
    assert "is not UTF-8 text" in err


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "resnext101_64x4d"])
def test_every_model_has_both_names(name: str) -> None:
    variant = shared.models()[name]
    assert shared.model(variant.__name__) == shared.model(name) == name
    assert len(shared.models()) == 10


def test_a_backend_that_this_machine_lacks(classify: Run, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "unavailable", lambda self: "no abacus")
    status, out, err = classify(cat, "--backend", "reference")
    assert (status, out) == (2, "")
    assert err.startswith("fastres: error: argument --backend: backend 'reference' is not available: no abacus (see ")
