"""The command line: ``fastnn demo | train | predict | info | bench``.

Exit status: 0 where all went well, 1 for an error in the data, a file or the training, 2 for a
wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import fastnn
from fastnn._pictures import confusion_matrix, confusion_text, digits_text, write_pictures
from fastnn.datasets import encode_classes, load_digits, load_idx, read_csv
from fastnn.errors import DivergenceError
from fastnn.mlp import MLP
from fastnn.persistence import write_atomically
from fastnn.preprocessing import Preprocessing
from fastnn.schedules import CosineDecay
from fastnn.tables.activations import ACTIVATIONS
from fastnn.tables.optimizers import OPTIMIZERS
from fastnn.trainer import Trainer

__all__ = ["entry_point", "main"]

# A numeric target is taken for classes where it has at most this many different whole numbers, ...
MAX_NUMERIC_CLASSES = 20
# ... and this many rows for each of them.
MIN_ROWS_PER_CLASS = 5
# Wider confusion tables are not readable in a terminal.
MAX_TABLE_CLASSES = 20
CHUNK_ROWS = 8192


class UserError(Exception):
    """A mistake in what the user gave; its message is all that is shown."""


# Entry --------------------------------------------------------------------------------------------


def entry_point() -> None:
    """Run `main` as a program."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the arguments of the program.

    Returns
    -------
    int
        The exit status.
    """
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nfastnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, ValueError, TypeError, ArithmeticError, OSError, ImportError) as error:
        if options.debug:
            raise
        print(f"fastnn: error: {_message(error)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"fastnn: error: not enough memory: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``options.run`` is the function of the chosen one."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument(
        "--threads", type=_positive, metavar="N", help="threads (default: all cores)"
    )
    training.add_argument("--no-progress", action="store_true", help="no progress bar")

    parser = argparse.ArgumentParser(
        prog="fastnn",
        description="Perceptrons and multilayer perceptrons at the speed of the machine.",
        epilog="'fastnn COMMAND --help' says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"fastnn {fastnn.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        parents=[common, training],
        help="train on real handwritten digits, and show what came of it",
        description="Trains on three quarters of 1797 handwritten digits and reads the others.",
    )
    demo.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="write loss curves, confusion matrix, weights and misread digits as PNG files "
        "(needs matplotlib)",
    )
    demo.set_defaults(run=run_demo)

    train = commands.add_parser(
        "train",
        parents=[common, training],
        help="train a network on your data",
        description="Trains on a CSV file (a header, numeric columns, and the target), an NPZ file "
        "(arrays X and y) or a folder of IDX files (as MNIST), holds rows out to report on, and "
        "writes the model. The features are standardised, and the model file says how, so that "
        "'fastnn predict' takes the same raw data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument("data", type=Path, metavar="DATA", help="CSV, NPZ, or IDX folder")
    train.add_argument("--target", help="column of a CSV file, or array of an NPZ file (there: y)")
    train.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="auto takes text, and few different whole numbers, for classes",
    )
    train.add_argument(
        "--layers", type=_layers, default="64,32", metavar="N,N", help="hidden layers; '' for none"
    )
    train.add_argument("--epochs", type=_positive, default=20, metavar="N", help="passes over data")
    train.add_argument(
        "--output", type=Path, default=Path("model.safetensors"), metavar="FILE", help="the model"
    )
    train.add_argument(
        "--activation", choices=list(ACTIVATIONS), default="relu", metavar="NAME", help="hidden"
    )
    # LBFGS takes full batches and no learning rate: a matter for the Python API.
    optimizers = [name for name in OPTIMIZERS if name != "lbfgs"]
    train.add_argument(
        "--optimizer", choices=optimizers, default="adam", help="how weights are updated"
    )
    train.add_argument(
        "--learning-rate",
        type=_positive_real,
        metavar="R",
        help="that of the optimizer if not given",
    )
    train.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="rows a step")
    train.add_argument("--l2", type=_real, default=0.0, metavar="A", help="weight penalty")
    train.add_argument(
        "--dropout", type=_share, default=0.0, metavar="P", help="share of hidden units left out"
    )
    train.add_argument(
        "--holdout", type=_share, default=0.2, metavar="P", help="share of rows to report on"
    )
    train.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of all")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="of all random numbers")
    train.set_defaults(run=run_train)

    predict = commands.add_parser(
        "predict",
        parents=[common],
        help="predict with a trained network",
        description="Writes one line per row as CSV: the class, or the numbers.",
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="file of 'fastnn train'")
    predict.add_argument("data", type=Path, metavar="DATA", help="CSV, NPZ, or IDX folder")
    predict.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write (default: standard output)"
    )
    predict.add_argument(
        "--probabilities", action="store_true", help="also the probability of each class"
    )
    predict.set_defaults(run=run_predict)

    info = commands.add_parser(
        "info",
        parents=[common],
        help="show this installation, or what a model file holds",
        description="Without a model: version, instruction set, threads and backends.",
    )
    info.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="file of a model")
    info.set_defaults(run=run_info)

    bench = commands.add_parser(
        "bench",
        parents=[common],
        help="measure what this machine gives",
        description="Times training and prediction on generated data, in turn with NumPy doing the "
        "same work and with scikit-learn where it is installed. 'of peak' is the share of the "
        "multiply-adds that all threads could do; 'NumPy 2.5x' means that NumPy takes 2.5 times "
        "as long. OMP_NUM_THREADS=1 bounds all of them to one thread.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bench.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of all")
    bench.add_argument(
        "--seconds", type=_positive_real, default=20.0, metavar="S", help="about how long"
    )
    bench.add_argument("--json", action="store_true", help="write JSON in place of the table")
    bench.set_defaults(run=run_bench)
    return parser


# Commands -----------------------------------------------------------------------------------------


def run_demo(options: argparse.Namespace) -> None:
    """Train on digits, and show accuracy, speed, confusions and what was misread."""
    if options.pictures is not None:
        _check_pictures(options.pictures)
    X, y = load_digits()
    train, test = split_rows(y, 0.25, seed=0)
    print(
        f"{len(y)} handwritten digits of 8 x 8 pixels (UCI, CC BY 4.0): "
        f"{len(train)} to learn from, {len(test)} held out"
    )
    n_epochs, batch_size = 60, 32
    model = MLP([64, 128, 64, 10], output="softmax", dropout=0.2, seed=0)
    steps = n_epochs * -(-len(train) // batch_size)
    trainer = Trainer(
        model,
        batch_size=batch_size,
        schedule=CosineDecay(2e-3, n_steps=steps),
        seed=0,
        n_threads=options.threads,
    )
    print(f"training {'-'.join(map(str, model.plan.layer_sizes))}, {n_epochs} epochs")
    started = time.perf_counter()
    history = trainer.fit(
        X[train],
        y[train],
        epochs=n_epochs,
        validation_data=(X[test], y[test]),
        progress=not options.no_progress,
    )
    seconds = time.perf_counter() - started
    rate = n_epochs * len(train) / history.seconds.sum()
    print(f"trained in {seconds:.2f} s: {rate:,.0f} rows per second")

    predicted = model.predict(X[test]).argmax(axis=1)
    matrix = confusion_matrix(y[test], predicted, 10)
    names = [str(digit) for digit in range(10)]
    print_accuracy(matrix)
    encoding = sys.stdout.encoding or "ascii"
    print(f"\n{confusion_text(matrix, names, encoding)}\n")

    wrong = test[predicted != y[test]]
    images = X[wrong].reshape(-1, 8, 8)
    pairs = zip(y[wrong], predicted[predicted != y[test]], strict=True)
    captions = [f"{truth} read as {digit}" for truth, digit in pairs]
    shown = min(4, len(wrong))
    if shown:
        print(f"{len(wrong)} of {len(test)} misread; {shown} of them:\n")
        print(digits_text(images[:shown], captions[:shown], encoding))
    if options.pictures is not None:
        paths = write_pictures(
            options.pictures,
            history,
            matrix,
            names,
            model.weights[0],
            (images[:12], captions[:12]),
        )
        print("\nwrote " + ", ".join(map(str, paths)))


def run_train(options: argparse.Namespace) -> None:
    """Train on a file, report on rows that were held out, write the model."""
    _check_output(options.output)
    if options.holdout == 0 and options.data.is_dir():
        raise UserError("--holdout 0 has no effect on an IDX folder that brings its own test set")
    data = read_training_data(options.data, options.target, options.task, options.seed)
    train, test = data.split or _hold_out(data, options.holdout, options.seed)
    preprocessing = Preprocessing.standardizing(
        data.X[train],
        feature_names=data.feature_names,
        class_names=data.class_names,
        target_name=data.target_name,
    )
    dtype = np.dtype(options.dtype)
    X = standardized(preprocessing, data.X, dtype)
    classes = data.class_names
    # A network learns a target of the order of 1 best; `_unscale_outputs` puts the units back.
    offset, scale = (0.0, 1.0) if classes else _location(data.y[train])
    y = data.y if classes else ((data.y - offset) / scale).astype(dtype)

    n_outputs = len(classes) if classes else 1
    model = MLP(
        [data.X.shape[1], *options.layers, n_outputs],
        activation=options.activation,
        output="softmax" if classes else "identity",
        dropout=options.dropout,
        dtype=dtype,
        seed=options.seed,
    )
    model.preprocessing = preprocessing
    rate = {} if options.learning_rate is None else {"learning_rate": options.learning_rate}
    trainer = Trainer(
        model,
        optimizer=OPTIMIZERS[options.optimizer](**rate),
        batch_size=min(options.batch_size, len(train)),
        l2=options.l2,
        seed=options.seed,
        n_threads=options.threads,
    )
    kind = f"{n_outputs} classes" if classes else "a number"
    print(
        f"{options.data}: {len(data.y)} rows, {data.X.shape[1]} features; predicting "
        f"{data.target_name or 'the target'}, {kind}"
        + (" (--task regression takes it for a number)" if data.guessed and classes else "")
        + (" (--task classification takes it for classes)" if data.guessed and not classes else "")
    )
    print(
        f"training {'-'.join(map(str, model.plan.layer_sizes))} ({model.plan.n_parameters} "
        f"parameters) on {len(train)} rows, {len(test)} held out, {options.epochs} epochs"
    )
    try:
        history = trainer.fit(
            X[train], y[train], epochs=options.epochs, progress=not options.no_progress
        )
    except DivergenceError as error:
        raise UserError(f"{error}; try a smaller --learning-rate") from error
    rows_per_second = options.epochs * len(train) / history.seconds.sum()
    print(f"loss {history.loss[-1]:.4g}, {rows_per_second:,.0f} rows per second")
    if classes is None:
        _unscale_outputs(model, offset, scale)
    if len(test):
        report(model, X[test], data.y[test], classes, data.y[train])
    else:
        print("no rows were held out: no report on rows that the network has not seen")
    model.save(options.output)
    print(f"wrote {options.output}")


def run_predict(options: argparse.Namespace) -> None:
    """Write predictions as CSV."""
    if options.output is not None:
        _check_output(options.output)
    model = MLP.load(options.model)
    preprocessing = model.preprocessing or Preprocessing()
    if options.probabilities and model.plan.output not in ("softmax", "sigmoid"):
        raise UserError(
            f"--probabilities needs a model with classes, but the output of {options.model} is "
            f"{model.plan.output}"
        )
    X = read_features(options.data, preprocessing)
    if X.shape[1] != model.plan.n_features:
        raise UserError(
            f"{options.data} has {X.shape[1]} features, but {options.model} was trained on "
            f"{model.plan.n_features}"
        )
    dtype = model.plan.dtype
    outputs = model.predict(standardized(preprocessing, X, dtype))
    header, rows = prediction_table(model, outputs, options.probabilities)
    if options.output is None:
        write_csv(sys.stdout, header, rows)
    else:
        text = io.StringIO()
        write_csv(text, header, rows)
        content = text.getvalue().encode()
        write_atomically(options.output, lambda temporary: _write_bytes(temporary, content))
        print(f"wrote {len(outputs)} predictions to {options.output}", file=sys.stderr)


def run_info(options: argparse.Namespace) -> None:
    """Describe the installation, or a model file."""
    if options.model is None:
        fastnn.show_config()
        return
    model = MLP.load(options.model)
    plan, preprocessing = model.plan, model.preprocessing
    lines = [
        ("file", f"{options.model} ({options.model.stat().st_size:,} bytes)"),
        ("layers", "-".join(map(str, plan.layer_sizes))),
        ("activation", ", ".join(plan.activations) or "no hidden layer"),
        ("output", plan.output),
        ("parameters", f"{plan.n_parameters:,} {plan.dtype}"),
    ]
    if any(plan.dropout):
        lines.append(("dropout", ", ".join(map(str, plan.dropout))))
    if preprocessing is not None:
        standardized_text = "no" if preprocessing.mean is None else "yes"
        lines.append(("standardises", standardized_text))
        for name, value in (
            ("target", preprocessing.target_name and (preprocessing.target_name,)),
            ("classes", preprocessing.class_names),
            ("features", preprocessing.feature_names),
        ):
            if value:
                lines.append((name, _listed(value)))
    for name, text in lines:
        print(f"{name:<13}{text}")


def run_bench(options: argparse.Namespace) -> None:
    """Show the main figures of this machine."""
    from fastnn import _bench

    machine = _bench.machine()
    measured = _bench.figures(options.dtype, options.seconds)
    if options.json:
        content = {
            "fastnn": fastnn.__version__,
            "dtype": options.dtype,
            "machine": machine,
            "figures": [figure.as_dict() for figure in measured],
        }
        print(json.dumps(content, indent=2))
        return
    peak = machine["peak_gflops"][options.dtype]
    others = ["NumPy"] + ["scikit-learn"] * (machine["scikit-learn"] is not None)
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("python", "numpy", "scikit-learn")
        if machine[name] is not None
    )
    print(f"fastnn {fastnn.__version__}, {options.dtype}, threads: {machine['threads']}")
    print(f"{machine['processor']}, {machine['instruction_set']}, {machine['system']}; {versions}")
    if peak is not None:
        print(f"multiply-add peak: {peak:.0f} GFLOP/s a core")
    if machine["load"] is not None and machine["load"] > 0.5:
        print(f"other programs are running (load {machine['load']}): expect less than this gives")
    group = None
    for figure in measured:
        if figure.group != group:
            group = figure.group
            heads = "".join(f"{name:>14}" for name in others)
            print(f"\n{group:<34}{'time':>9}{'rows/s':>14}{'of peak':>9}{heads}")
        share = "" if figure.share_of_peak is None else f"{figure.share_of_peak:.0%}"
        ratios = "".join(f"{_ratio_text(figure.ratios[name]):>14}" for name in others)
        print(
            f"  {figure.name:<32}{_time_text(figure.seconds):>9}{figure.rows_per_second:>14,.0f}"
            f"{share:>9}{ratios}",
            flush=True,
        )
        if figure.p99 is not None:
            print(f"  {'  99 of 100 calls within':<32}{_time_text(figure.p99):>9}")


# Data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What `fastnn train` read.

    Attributes
    ----------
    X : ndarray of shape (n_rows, n_features)
    y : ndarray of shape (n_rows,)
        Positions in `class_names`, int64; or numbers, float64, where there are no classes.
    class_names : tuple of str or None
    feature_names : tuple of str or None
    target_name : str or None
    guessed : bool
        Whether the task was decided by looking at a numeric target.
    split : (train rows, test rows) or None
        Where the data bring their own test set.
    """

    X: np.ndarray
    y: np.ndarray
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None = None
    target_name: str | None = None
    guessed: bool = False
    split: tuple[np.ndarray, np.ndarray] | None = None


def data_format(path: Path) -> str:
    """Return "idx", "npz" or "csv"; anything else is an error."""
    if path.is_dir():
        return "idx"
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".csv"):
        return suffix[1:]
    raise UserError(
        f"{path}: expected a .csv file, a .npz file, or a folder of IDX files, got "
        f"{f'a {suffix} file' if suffix else 'a file without a suffix'}"
    )


def read_training_data(path: Path, target: str | None, task: str, seed: int) -> TrainingData:
    """Read features and target of any format, and decide what is to be predicted."""
    kind = data_format(path)
    if kind == "csv":
        if target is None:
            raise UserError(f"{path} is a CSV file: name the column to predict by --target COLUMN")
        table = read_csv(path, target)
        assert table.target is not None
        numbers = table.target_numbers()
        y, classes, guessed = decide_task(table.target, numbers, task, target)
        return TrainingData(table.X, y, classes, table.feature_names, target, guessed)
    if kind == "npz":
        name = "y" if target is None else target
        arrays = read_npz(path, ("X", name))
        X, values = as_rows(arrays["X"], path, "X"), arrays[name]
        if values.ndim != 1 or len(values) != len(X):
            raise UserError(
                f"{path}: {name} has shape {values.shape}, expected ({len(X)},): one per row of X"
            )
        if values.dtype.kind in "USO":
            numbers = None
        elif values.dtype.kind in "biuf":
            numbers = values.astype(np.float64)
            if not np.isfinite(numbers).all():
                raise UserError(f"{path}: {name} holds NaN or infinity")
        else:
            raise UserError(f"{path}: {name} has dtype {values.dtype}, expected numbers or text")
        texts = values.astype(str).tolist() if numbers is None else _number_texts(values)
        y, classes, guessed = decide_task(texts, numbers, task, name)
        return TrainingData(X, y, classes, None, name, guessed)
    if target is not None:
        raise UserError(
            f"{path} is a folder of IDX files, which hold the labels: leave out --target"
        )
    if task == "regression":
        raise UserError(f"{path}: IDX folders hold labels, expected --task classification")
    idx = load_idx(path)
    train_rows = np.arange(len(idx.y_train))
    X, labels, split = idx.X_train, idx.y_train, None
    if idx.X_test is not None and idx.y_test is not None:
        X = np.concatenate([X, idx.X_test])
        labels = np.concatenate([labels, idx.y_test])
        split = (train_rows, np.arange(len(train_rows), len(labels)))
    names, y = encode_classes(list(map(str, labels.tolist())))
    _check_classes(names, "the labels")
    return TrainingData(X, y, names, None, "label", False, split)


def decide_task(
    texts: Sequence[str], numbers: np.ndarray | None, task: str, target: str
) -> tuple[np.ndarray, tuple[str, ...] | None, bool]:
    """Targets as the network takes them, the classes if there are any, and whether it was a guess.

    With ``task="auto"`` a target is a class where it is text, or where it holds at most 20
    different whole numbers, each of them five times on average.
    """
    guessed = False
    if task == "auto":
        if numbers is None:
            task = "classification"
        else:
            guessed = True
            n_different = len(np.unique(numbers))
            few = n_different <= min(MAX_NUMERIC_CLASSES, len(numbers) / MIN_ROWS_PER_CLASS)
            whole = bool((numbers == np.rint(numbers)).all())
            task = "classification" if few and whole else "regression"
    if task == "classification":
        names, y = encode_classes(texts)
        _check_classes(names, target)
        return y, names, guessed
    if numbers is None:
        odd = next(text for text in texts if not _is_number(text))
        raise UserError(f"--task regression needs numbers, but the target {target!r} holds {odd!r}")
    return numbers, None, guessed


def read_features(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """The rows to predict: the columns that the model knows by name, else all."""
    kind = data_format(path)
    if kind == "csv":
        return read_csv(path, columns=preprocessing.feature_names).X
    if kind == "npz":
        return as_rows(read_npz(path, ("X",))["X"], path, "X")
    data = load_idx(path)
    return data.X_train if data.X_test is None else data.X_test


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays; never anything that runs code."""
    try:
        # Opened here, since NumPy leaves a file that is no archive open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds one bare array: save it by numpy.savez")
            missing = [name for name in names if name not in file.files]
            if missing:
                raise UserError(
                    f"{path} has no array {missing[0]!r}: it holds {_listed(file.files)}"
                )
            return {name: file[name] for name in names}
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is not a readable NPZ file: {error}") from error


def as_rows(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    """One row per sample; images are laid flat."""
    if array.ndim < 2 or not array.size:
        raise UserError(
            f"{path}: {name} has shape {array.shape}, expected (n_rows, n_features), not empty"
        )
    return array.reshape(len(array), -1)


def standardized(preprocessing: Preprocessing, X: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`preprocessing.transform` by chunks, so that float64 copies stay small."""
    if preprocessing.mean is None:
        return X
    result = np.empty(X.shape, dtype)
    for begin in range(0, len(X), CHUNK_ROWS):
        rows = slice(begin, begin + CHUNK_ROWS)
        result[rows] = preprocessing.transform(X[rows])
    return result


def split_rows(classes: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, with the same share of every class.

    A class of which `share` is less than one row stays in training: it could not be learned
    otherwise.

    Parameters
    ----------
    classes : ndarray of shape (n_rows,), int64
    share : float
        Of each class, rounded down to the next row, ``0 <= share < 1``.
    seed : int

    Returns
    -------
    train, test : ndarray of int64, sorted
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        held_out[generator.permutation(rows)[: int(share * len(rows))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _hold_out(data: TrainingData, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # Numbers have no classes to keep in proportion.
    groups = data.y if data.class_names else np.zeros(len(data.y), np.int64)
    train, test = split_rows(groups, share, seed)
    if share and not len(test):
        raise UserError(
            f"--holdout {share} of {len(data.y)} rows holds out none: give more, or --holdout 0"
        )
    return train, test


def _check_classes(names: tuple[str, ...], target: str) -> None:
    if len(names) < 2:
        raise UserError(f"{target} has only one class, {names[0]!r}: there is nothing to learn")


def _location(y: np.ndarray) -> tuple[float, float]:
    scale = float(y.std())
    return float(y.mean()), scale if scale > 0 else 1.0


def _unscale_outputs(model: MLP, offset: float, scale: float) -> None:
    """Make a linear output layer that learned (y - offset) / scale predict y."""
    model.weights[-1] = model.weights[-1].astype(np.float64) * scale
    model.biases[-1] = model.biases[-1].astype(np.float64) * scale + offset


# Reports ------------------------------------------------------------------------------------------


def print_accuracy(matrix: np.ndarray) -> None:
    """The line that says how many held-out rows were right."""
    right, total = int(np.trace(matrix)), int(matrix.sum())
    print(f"held-out accuracy: {100 * right / total:.2f} % ({right} of {total})")


def report(
    model: MLP,
    X: np.ndarray,
    y: np.ndarray,
    classes: tuple[str, ...] | None,
    y_train: np.ndarray,
) -> None:
    """What the model makes of rows that it has not seen, against the simplest guess."""
    outputs = model.predict(X)
    if classes is not None:
        matrix = confusion_matrix(y, outputs.argmax(axis=1), len(classes))
        print_accuracy(matrix)
        common = int(np.bincount(y_train, minlength=len(classes)).argmax())
        share = 100 * float((y == common).mean())
        print(f"always {classes[common]!r} would have been right in {share:.2f} %")
        if len(classes) <= MAX_TABLE_CLASSES:
            print(f"\n{confusion_text(matrix, classes, sys.stdout.encoding or 'ascii')}\n")
        return
    error = outputs[:, 0].astype(np.float64) - y
    baseline = y - y_train.mean()
    rmse, plain = (float(np.sqrt(np.mean(e * e))) for e in (error, baseline))
    print(f"held-out error: RMSE {rmse:.4g}, mean absolute {np.abs(error).mean():.4g}")
    print(f"the mean of the training rows would have had RMSE {plain:.4g}")
    spread = float(np.sum((y - y.mean()) ** 2))
    if spread > 0:
        print(f"held-out R2: {1 - float(np.sum(error * error)) / spread:.4f}")


def prediction_table(
    model: MLP, outputs: np.ndarray, probabilities: bool
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the predictions as text.

    Parameters
    ----------
    model : MLP
    outputs : ndarray of shape (n_rows, n_outputs)
    probabilities : bool
        Whether to append a column per class.
    """
    preprocessing = model.preprocessing or Preprocessing()
    target = preprocessing.target_name or "prediction"
    names = preprocessing.class_names
    one_unit = model.plan.output == "sigmoid" and outputs.shape[1] == 1
    if model.plan.output == "softmax" or (one_unit and names):
        # One sigmoid unit is the probability of the second class.
        shares = np.hstack([1 - outputs, outputs]) if one_unit else outputs
        labels = names or tuple(map(str, range(shares.shape[1])))
        header = [target]
        rows = [[labels[k]] for k in shares.argmax(axis=1)]
        if probabilities:
            header += [f"probability_{label}" for label in labels]
            rows = [row + _texts(values) for row, values in zip(rows, shares, strict=True)]
        return header, rows
    width = outputs.shape[1]
    header = [target] if width == 1 else [f"{target}_{k}" for k in range(width)]
    return header, [_texts(values) for values in outputs]


def write_csv(file: TextIO, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Comma-separated, one line feed a line, quotes where they are needed."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


# Small things -------------------------------------------------------------------------------------


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _texts(values: np.ndarray) -> list[str]:
    """The shortest decimal of each number that reads back as the same number."""
    return [str(value) for value in values]


def _number_texts(values: np.ndarray) -> list[str]:
    """Names of numeric classes: 3 rather than 3.0."""
    if values.dtype.kind == "f":
        return [str(int(v)) if v == int(v) else str(v) for v in values.tolist()]
    return list(map(str, values.astype(np.int64).tolist() if values.dtype.kind == "b" else values))


def _time_text(seconds: float) -> str:
    """Three figures, in the unit that suits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _ratio_text(ratio: float | None) -> str:
    return "other result" if ratio is None else f"{ratio:.3g}x"


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _listed(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _write_bytes(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def _check_output(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--output {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {path}: the folder {folder} cannot be written to")


def _check_pictures(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--pictures {folder} is a file: name a folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("--pictures needs matplotlib: pip install 'fastnn-mlp[plot]'") from error


def _argument(convert: Callable[[str], Any], good: Callable[[Any], bool], expected: str) -> Any:
    """A type for argparse that says what was expected."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


_positive = _argument(int, lambda n: n >= 1, "a whole number of at least 1")
_seed = _argument(int, lambda n: 0 <= n < 1 << 64, "a whole number from 0 to 2**64 - 1")
_real = _argument(float, lambda x: 0 <= x < float("inf"), "a number of at least 0")
_positive_real = _argument(float, lambda x: 0 < x < float("inf"), "a number above 0")
_share = _argument(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
_layers = _argument(
    lambda text: [int(size) for size in text.split(",")] if text.strip() else [],
    lambda sizes: all(size >= 1 for size in sizes),
    "whole numbers of at least 1, separated by commas",
)
