"""The command line as a user meets it: commands, files, messages, exit statuses."""

import csv
import os
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

import fastnn
from fastnn import cli
from fastnn._pictures import confusion_matrix, confusion_text, digits_text

rng = np.random.default_rng


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture
def flowers(tmp_path):
    """Three well separated clusters with text labels; one column on a large scale."""
    generator = rng(0)
    centers = np.array([[0, 0, 1e4], [4, 0, 2e4], [0, 4, 3e4]])
    labels = np.repeat(np.arange(3), 60)
    X = centers[labels] + generator.normal(size=(180, 3)) * [0.5, 0.5, 1e3]
    names = np.array(["rose", "tulip", "lily, white"])[labels]
    rows = [[*x, name] for x, name in zip(X.tolist(), names, strict=True)]
    return write_csv(tmp_path / "flowers.csv", ["a", "b", "c", "species"], rows)


@pytest.fixture
def line(tmp_path):
    """y = 50 x - 20 z + 1000, which no untrained network guesses."""
    X = rng(1).uniform(-1, 1, size=(400, 2))
    y = 50 * X[:, 0] - 20 * X[:, 1] + 1000
    rows = np.column_stack([X, y]).tolist()
    return write_csv(tmp_path / "line.csv", ["x", "z", "y"], rows)


def run(capsys, *args):
    """(status, output, errors) of one command in this process."""
    status = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out, err


def train(capsys, *args):
    status, out, err = run(capsys, "train", *args, "--no-progress")
    assert status == 0, err
    return out


def read(text):
    return list(csv.reader(text.splitlines()))


def accuracy(out):
    return float(re.search(r"accuracy: ([\d.]+) %", out)[1])


# demo


def test_demo(capsys):
    status, out, err = run(capsys, "demo")
    assert status == 0
    assert accuracy(out) >= 97
    assert "%" in err  # the progress bar
    assert re.search(r"[\d,]+ rows per second", out)
    header = next(line for line in out.splitlines() if line.startswith("true"))
    assert header.split() == ["true", *"0123456789"]
    rows = [line.split() for line in out.splitlines() if re.match(r"\d( +[\d·.]+){10}$", line)]
    counts = np.array([[0 if c in "·." else int(c) for c in row[1:]] for row in rows])
    assert counts.shape == (10, 10)
    right, total = map(int, re.search(r"\((\d+) of (\d+)\)", out).groups())
    assert (np.trace(counts), counts.sum()) == (right, total)
    assert total > 400
    if right < total:
        assert re.search(r"\d read as \d", out)


@pytest.mark.parametrize("threads", [1, 3])
def test_demo_does_not_depend_on_threads(capsys, threads):
    def without_speed(text):
        return re.sub(r"trained in.*", "", text)

    first = run(capsys, "demo", "--no-progress")[1]
    second = run(capsys, "demo", "--no-progress", "--threads", threads)[1]
    assert without_speed(first) == without_speed(second)


def test_demo_pictures(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("matplotlib.image")
    folder = tmp_path / "new" / "pictures"
    status, out, err = run(capsys, "demo", "--no-progress", "--pictures", folder)
    assert status == 0, err
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["confusion.png", "first_layer.png", "loss.png", "misread.png"]
    for path in folder.iterdir():
        assert path.name in out
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 0.01  # not one flat colour


def test_demo_pictures_without_matplotlib(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run(capsys, "demo", "--pictures", tmp_path)
    assert status == 1
    assert "pip install 'fastnn-mlp[plot]'" in err
    assert out == ""  # before any work


# train and predict


def test_classification_from_csv(capsys, flowers, tmp_path):
    model = tmp_path / "model.safetensors"
    args = ["--target", "species", "--layers", "16", "--epochs", "60"]
    out = train(capsys, flowers, *args, "--output", model)
    assert "3 classes" in out
    assert accuracy(out) > 95
    # Every fifth row of each class of 60 is held out.
    assert " of 36)" in out
    assert "lily, white" in out

    status, out, err = run(capsys, "predict", model, flowers, "--probabilities")
    assert (status, err) == (0, "")
    header, *rows = read(out)
    labels = ["lily, white", "rose", "tulip"]
    assert header == ["species", *(f"probability_{name}" for name in labels)]
    truth = [row[-1] for row in read(flowers.read_text())[1:]]
    assert np.mean([row[0] == t for row, t in zip(rows, truth, strict=True)]) > 0.95
    shares = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert [labels[k] for k in shares.argmax(axis=1)] == [row[0] for row in rows]


def test_predict_finds_columns_by_name(capsys, flowers, tmp_path):
    model = tmp_path / "m.safetensors"
    train(capsys, flowers, "--target", "species", "--output", model)
    expected = run(capsys, "predict", model, flowers, "--probabilities")[1]
    header, *rows = read(flowers.read_text())
    order = [2, 0, 1]  # without the target, with a column that the model does not know
    shuffled = write_csv(
        tmp_path / "other.csv",
        ["note", *(header[k] for k in order)],
        [["n/a", *(row[k] for k in order)] for row in rows],
    )
    assert run(capsys, "predict", model, shuffled, "--probabilities")[1] == expected
    less = write_csv(tmp_path / "less.csv", ["a", "b"], [row[:2] for row in rows])
    status, out, err = run(capsys, "predict", model, less)
    assert (status, out) == (1, "")
    assert "'c'" in err


def test_the_model_file_agrees_with_the_api(capsys, flowers, tmp_path):
    path = tmp_path / "m.safetensors"
    train(capsys, flowers, "--target", "species", "--output", path)
    model = fastnn.MLP.load(path)
    X = np.array([row[:3] for row in read(flowers.read_text())[1:]], float)
    shares = model.predict(model.preprocessing.transform(X))
    out = run(capsys, "predict", path, flowers, "--probabilities")[1]
    printed = np.array([row[1:] for row in read(out)[1:]], np.float32)
    np.testing.assert_array_equal(printed, shares)  # the text reads back as the same numbers
    # Standardised on the training rows alone, so only about 0 and 1 on all rows.
    np.testing.assert_allclose(model.preprocessing.mean, X.mean(axis=0), rtol=0.1, atol=0.2)
    np.testing.assert_allclose(model.preprocessing.scale, X.std(axis=0), rtol=0.1)


def test_regression_from_csv(capsys, line, tmp_path):
    model = tmp_path / "m.safetensors"
    out = train(capsys, line, "--target", "y", "--epochs", "60", "--output", model)
    assert "a number" in out
    assert float(re.search(r"R2: ([\d.]+)", out)[1]) > 0.99
    rmse, plain = map(float, re.findall(r"RMSE ([\d.]+)", out))
    assert rmse < 0.1 * plain
    predicted = run(capsys, "predict", model, line)[1]
    header, *rows = read(predicted)
    assert header == ["y"]
    truth = np.array([row[-1] for row in read(line.read_text())[1:]], float)
    error = np.array(rows, float)[:, 0] - truth
    assert np.sqrt(np.mean(error**2)) < 5
    assert np.sqrt(np.mean(error**2)) == pytest.approx(rmse, rel=0.5)


def test_linear_regression_finds_the_line(capsys, line, tmp_path):
    """Without hidden layers the network is linear, and the data were made by a line."""
    path = tmp_path / "m.safetensors"
    args = ["--layers", "", "--epochs", "200", "--learning-rate", "0.01", "--dtype", "float64"]
    train(capsys, line, "--target", "y", *args, "--output", path)
    model = fastnn.MLP.load(path)
    slope = model.weights[0][:, 0] / model.preprocessing.scale
    intercept = model.biases[0][0] - slope @ model.preprocessing.mean
    np.testing.assert_allclose(slope, [50, -20], rtol=1e-3)
    np.testing.assert_allclose(intercept, 1000, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0, 1] * 20, "classification"),
        ([1.0, 2.0, 7.0] * 20, "classification"),
        ([0.5, 1.5] * 20, "regression"),  # not whole
        (list(range(21)) * 20, "regression"),  # more than 20 values
        (list(range(20)) * 20, "classification"),
        (list(range(10)), "regression"),  # one row for each value
    ],
)
def test_task_of_a_numeric_target(values, task):
    numbers = np.array(values, float)
    y, classes, guessed = cli.decide_task([str(v) for v in values], numbers, "auto", "t")
    assert guessed
    assert (classes is not None) == (task == "classification")
    if classes is None:
        np.testing.assert_array_equal(y, numbers)
    else:
        assert [float(classes[k]) for k in y] == values


def test_task_can_be_chosen(capsys, tmp_path):
    X = rng(0).normal(size=(100, 1))
    y = (X[:, 0] > 0).astype(int)
    path = write_csv(tmp_path / "d.csv", ["x", "y"], np.column_stack([X, y]).tolist())
    args = [path, "--target", "y", "--epochs", "1", "--output", tmp_path / "m.safetensors"]
    assert "2 classes (--task regression" in train(capsys, *args)
    assert "a number" in train(capsys, *args, "--task", "regression")
    status, _, err = run(capsys, "predict", tmp_path / "m.safetensors", path, "--probabilities")
    assert status == 1
    assert "--probabilities needs a model with classes" in err


@pytest.mark.parametrize("labels", ["text", "bytes-like ints", "bool", "float"])
def test_npz(capsys, tmp_path, labels):
    X = rng(0).normal(size=(200, 2, 3))
    positive = X[:, 0, 0] > 0
    y, names = {
        "text": (np.where(positive, "yes", "no"), {"yes", "no"}),
        "bytes-like ints": (np.where(positive, 7, 3).astype(np.uint8), {"7", "3"}),
        "bool": (positive, {"1", "0"}),
        "float": (np.where(positive, 2.0, -1.0), {"2", "-1"}),
    }[labels]
    data, model = tmp_path / "d.npz", tmp_path / "m.safetensors"
    np.savez(data, X=X, y=y)
    out = train(capsys, data, "--epochs", "30", "--output", model)
    assert "6 features" in out
    assert accuracy(out) > 85
    header, *rows = read(run(capsys, "predict", model, data)[1])
    assert header == ["y"]
    assert {row[0] for row in rows} == names


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("with_test", [True, False])
def test_idx_folder(capsys, tmp_path, with_test):
    X, y = fastnn.datasets.load_digits()
    images = (X * 255).astype(np.uint8).reshape(-1, 8, 8)
    folder = tmp_path / "digits"
    folder.mkdir()
    parts = {"train": slice(0, 1000), "t10k": slice(1000, 1200)} if with_test else {}
    for part, rows in (parts or {"train": slice(0, 1000)}).items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(y[rows].astype(np.uint8)))
    model = tmp_path / "m.safetensors"
    out = train(capsys, folder, "--output", model)
    assert accuracy(out) > 90
    assert ("on 1000 rows, 200 held out" in out) == with_test
    rows = read(run(capsys, "predict", model, folder)[1])[1:]
    truth = y[1000:1200] if with_test else y[:1000]
    assert np.mean(np.array(rows, int)[:, 0] == truth) > 0.9


def test_predict_writes_a_file(capsys, flowers, tmp_path):
    model, target = tmp_path / "m.safetensors", tmp_path / "out.csv"
    train(capsys, flowers, "--target", "species", "--epochs", "1", "--output", model)
    expected = run(capsys, "predict", model, flowers)[1]
    status, out, err = run(capsys, "predict", model, flowers, "--output", target)
    assert (status, out) == (0, "")
    assert str(target) in err
    assert target.read_text() == expected


def test_same_seed_same_file(capsys, flowers, tmp_path):
    args = [flowers, "--target", "species", "--dropout", "0.1", "--epochs", "3"]
    files = []
    for name, more in (("a", []), ("b", ["--threads", "3"]), ("c", ["--seed", "1"])):
        files.append(tmp_path / name)
        train(capsys, *args, *more, "--output", files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


def test_prediction_of_a_model_made_in_python(capsys, tmp_path):
    """Without names, classes and standardisation: what the outputs are is all that is known."""
    X = rng(0).normal(size=(5, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=X)
    for output, n_outputs, header in (
        ("softmax", 4, ["prediction"]),
        ("identity", 2, ["prediction_0", "prediction_1"]),
        ("sigmoid", 1, ["prediction"]),
    ):
        model = fastnn.MLP([3, 4, n_outputs], output=output, seed=0)
        model.save(tmp_path / "m.safetensors")
        first, *rows = read(
            run(capsys, "predict", tmp_path / "m.safetensors", tmp_path / "d.npz")[1]
        )
        assert first == header
        outputs = model.predict(X)
        if output == "softmax":
            assert [int(row[0]) for row in rows] == outputs.argmax(axis=1).tolist()
        else:
            np.testing.assert_array_equal(np.array(rows, np.float32), outputs)


def test_one_sigmoid_unit_with_two_names(capsys, tmp_path):
    X = rng(0).normal(size=(20, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=X)
    model = fastnn.MLP([3, 1], output="sigmoid", seed=0)
    from fastnn.preprocessing import Preprocessing

    model.preprocessing = Preprocessing(class_names=("no", "yes"))
    model.save(tmp_path / "m")
    out = run(capsys, "predict", tmp_path / "m", tmp_path / "d.npz", "--probabilities")[1]
    header, *rows = read(out)
    assert header == ["prediction", "probability_no", "probability_yes"]
    yes = model.predict(X)[:, 0]
    assert [row[0] for row in rows] == ["yes" if p > 0.5 else "no" for p in yes]
    assert {row[0] for row in rows} == {"yes", "no"}


# hold-out


def test_split_keeps_the_share_of_every_class():
    classes = np.repeat([0, 1, 2, 3], [100, 30, 4, 1])
    train, test = cli.split_rows(classes, 0.3, seed=0)
    assert np.bincount(classes[test], minlength=4).tolist() == [30, 9, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(135))
    assert not np.array_equal(test, cli.split_rows(classes, 0.3, seed=1)[1])


def test_without_holdout(capsys, flowers, tmp_path):
    out = train(
        capsys, flowers, "--target", "species", "--holdout", "0", "--output", tmp_path / "m"
    )
    assert "on 180 rows, 0 held out" in out
    assert "accuracy" not in out


# info


def test_info(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert fastnn.__version__ in out


def test_info_of_a_model(capsys, flowers, tmp_path):
    model = tmp_path / "m.safetensors"
    train(capsys, flowers, "--target", "species", "--layers", "5,4", "--output", model)
    status, out, _ = run(capsys, "info", model)
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["layers"] == "3-5-4-3"
    assert lines["parameters"].startswith(str(3 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3))
    assert lines["standardises"] == "yes"
    assert lines["features"] == "a, b, c"
    assert lines["classes"] == "lily, white, rose, tulip"


# mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no.csv", "--target", "y"], "no.csv: no such file"),
        (["data.parquet"], "expected a .csv file, a .npz file, or a folder"),
        (["line.csv"], "--target COLUMN"),
        (["line.csv", "--target", "w"], "'w'"),
        (["line.csv", "--target", "y", "--output", "nowhere/m"], "nowhere"),
        (["line.csv", "--target", "y", "--output", "."], "folder"),
        (["line.csv", "--target", "y", "--holdout", "0.0001"], "holds out none"),
        (["text.csv", "--target", "y"], "line 2, column 'x'"),
        (["one.csv", "--target", "y"], "only one class"),
        (["names.csv", "--target", "y", "--task", "regression"], "'b'"),
        (["broken.npz"], "not a readable NPZ"),
        (["empty.npz"], "no array 'X'"),
        (["objects.npz"], "not a readable NPZ"),
        (["folder"], "train-images-idx3-ubyte"),
        (["folder", "--target", "y"], "leave out --target"),
        (
            ["line.csv", "--target", "y", "--optimizer", "sgd", "--learning-rate", "1e30"],
            "smaller --learning-rate",
        ),
    ],
)
def test_mistakes_get_a_message_and_no_traceback(
    capsys, line, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.parquet").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip file")
    np.savez(tmp_path / "empty.npz", Z=np.ones(3))
    np.savez(tmp_path / "objects.npz", X=np.array([[{}]] * 3), y=np.ones(3))
    write_csv(tmp_path / "text.csv", ["x", "y"], [["small", 1], ["large", 2]])
    write_csv(tmp_path / "one.csv", ["x", "y"], [[i, "same"] for i in range(9)])
    write_csv(tmp_path / "names.csv", ["x", "y"], [[1, "2"], [2, "b"]])
    before = sorted(tmp_path.iterdir())
    status, _, err = run(capsys, "train", *args, "--no-progress")
    assert status == 1
    assert err.startswith("fastnn: error: ")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "d.csv", "--layers", "64,0"],
        ["train", "d.csv", "--layers", "a"],
        ["train", "d.csv", "--epochs", "0"],
        ["train", "d.csv", "--epochs", "1.5"],
        ["train", "d.csv", "--dropout", "1"],
        ["train", "d.csv", "--learning-rate", "nan"],
        ["train", "d.csv", "--seed", "-1"],
        ["train", "d.csv", "--optimizer", "lbfgs"],
        ["train", "d.csv", "--activation", "relu7"],
        ["predict", "m"],
    ],
)
def test_wrong_command_lines(capsys, args):
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2
    assert "usage: fastnn" in capsys.readouterr().err


def test_layers_are_explained(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "d.csv", "--layers", "64,0"])
    err = capsys.readouterr().err
    assert "expected whole numbers of at least 1, separated by commas, got '64,0'" in err


def test_damaged_model(capsys, line, tmp_path):
    model = tmp_path / "m.safetensors"
    train(capsys, line, "--target", "y", "--epochs", "1", "--output", model)
    model.write_bytes(model.read_bytes()[:-8])
    for args in (["predict", model, line], ["info", model]):
        status, _, err = run(capsys, *args)
        assert status == 1
        assert str(model) in err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(cli.UserError):
        cli.main(["train", str(tmp_path / "no.csv"), "--debug"])


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["predict"], ["info"], ["bench"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fastnn")


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fastnn {fastnn.__version__}\n"


# as a process

COMMAND = [sys.executable, "-P", "-m", "fastnn"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c(flowers, tmp_path):
    model = tmp_path / "m.safetensors"
    args = ["train", flowers, "--target", "species", "--epochs", "100000000", "--output", model]
    process = subprocess.Popen(
        [*COMMAND, *map(str, args), "--no-progress"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert "100000000 epochs" in lines[1]
    time.sleep(0.5)  # into the training
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not model.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_output_that_nobody_reads(tmp_path):
    fastnn.MLP([3, 2], seed=0).save(tmp_path / "m")
    np.savez(tmp_path / "d.npz", X=rng(0).normal(size=(20000, 3)))
    process = subprocess.Popen(
        [*COMMAND, "predict", str(tmp_path / "m"), str(tmp_path / "d.npz")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "prediction_0,prediction_1\n"
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 141
    assert err == ""


def test_as_a_module():
    out = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    assert out == f"fastnn {fastnn.__version__}\n"


# pictures in the terminal


def test_confusion_matrix():
    truth, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 2]]  # counted by hand
    np.testing.assert_array_equal(confusion_matrix(truth, predicted, 3), expected)


def test_confusion_text_fits_its_columns():
    matrix = np.array([[123456, 0], [7, 8]])
    text = confusion_text(matrix, ["a", "a very long name indeed"])
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    assert "123456" in text
    assert "·" in text
    assert confusion_text(matrix, ["ä", "b"], "ascii").isascii()


def test_digits_text():
    image = np.zeros((2, 8, 8))
    image[0, 0, 0] = 1
    image[1, 7, 7] = 0.5
    lines = digits_text(image, ["first", "second"]).splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("██")
    assert lines[7].rstrip().endswith("▒▒")
    assert len(lines[7].rstrip()) == 16 + 3 + 16
    assert lines[8].split() == ["first", "second"]
    assert digits_text(image, ["a", "b"], "ascii").isascii()
