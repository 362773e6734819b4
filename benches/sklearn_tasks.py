"""Ten tasks of scikit-learn's users: fastnn.sklearn beside scikit-learn, in turn, in one run.

    python benches/sklearn_tasks.py                     all of them, two minutes
    python benches/sklearn_tasks.py digits text         some
    python benches/sklearn_tasks.py --threads 2         two threads for both
    python benches/sklearn_tasks.py --cpu               where other programs load the machine too

A task is a whole fit with scikit-learn's parameters and random_state=0, float64, and `predict` of
one row with all of its checks. Both packages fit in turn, --repeats times and short fits more
often, and the fastest fit of each counts (--median: the one in the middle). BLAS is held to the
threads that fastnn gets.

A ratio stands only where both did the same work: as many epochs and the same final loss to 1e-6,
or, for the Perceptron, the same bits of all weights. Otherwise the program ends with an error.
"""

import argparse
import functools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import machine
import numpy as np
import scipy
import scipy.sparse as sp
import sklearn
import sklearn.linear_model
import sklearn.neural_network
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler
from threadpoolctl import threadpool_limits
from workloads import TINY

import fastnn.sklearn

PEERS = {
    "MLPClassifier": sklearn.neural_network.MLPClassifier,
    "MLPRegressor": sklearn.neural_network.MLPRegressor,
    "Perceptron": sklearn.linear_model.Perceptron,
}
LOSS_RTOL = 1e-6
SCORE_BAND = 0.01
TEST_SHARE = 0.2
N_ROWS_ASKED = 50  # each asked alone
ROW_ROUNDS = 2 if TINY else 30
SHORT_SECONDS = 0.0 if TINY else 1.0  # so long short fits are repeated


# Data ---------------------------------------------------------------------------------------------


def california_like(n_samples=20_640):
    """As many rows and columns as the California housing data, from Friedman's function.

    y = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4 + noise; x5 to x7 say nothing
    (Friedman 1991, doi 10.1214/aos/1176347963).
    """
    return datasets.make_friedman1(n_samples, n_features=8, noise=1.0, random_state=0)


def text(n_documents=3000, n_words=5000, n_topics=20, length=120):
    """Documents of twenty topics as TF-IDF, CSR: shaped as those of 20 newsgroups, but fewer.

    A word comes with a probability of one over its rank (Zipf's law); a fifth of the words of a
    document are drawn from the 100 words of its topic. Lengths are geometric.
    """
    rng = np.random.RandomState(0)
    zipf = 1 / np.arange(1, n_words + 1)
    topics = rng.randint(n_topics, size=n_documents)
    own_words = rng.choice(n_words, (n_topics, 100))
    lengths = 10 + rng.geometric(1 / (length - 10), n_documents)
    documents = np.repeat(np.arange(n_documents), lengths)
    words = rng.choice(n_words, len(documents), p=zipf / zipf.sum())
    of_topic = rng.uniform(size=len(documents)) < 0.2
    places = rng.randint(own_words.shape[1], size=of_topic.sum())
    words[of_topic] = own_words[topics[documents[of_topic]], places]
    counts = sp.coo_matrix((np.ones(len(words)), (documents, words)), (n_documents, n_words))
    return TfidfTransformer().fit_transform(counts.tocsr()), topics


def labels(n_samples=2000):
    """Five labels that do not exclude each other, from counts of twenty words."""
    return datasets.make_multilabel_classification(n_samples, 20, n_classes=5, random_state=0)


def table(n_samples=125_000):
    """Two classes in 50 columns, of which 20 tell something."""
    return datasets.make_classification(
        n_samples, 50, n_informative=20, flip_y=0.05, random_state=0
    )


# Tasks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One fit, and what it changes in scikit-learn's defaults."""

    name: str
    data: Callable[[], tuple]
    estimator: str
    params: dict = field(default_factory=dict)
    scaler: Callable[[], Any] | None = StandardScaler


def loader(name):
    return functools.partial(getattr(datasets, f"load_{name}"), return_X_y=True)


# California-like and iris have the parameters of scikit-learn's examples on partial dependence and
# on training curves; wine the solver that its manual advises for small data; diabetes ten times
# the epochs, since 200 end far from a minimum. text, labels and table end early, so that the whole
# takes minutes.
TASKS = {
    task.name: task
    for task in (
        Task("digits", loader("digits"), "MLPClassifier", scaler=MinMaxScaler),
        Task("breast cancer", loader("breast_cancer"), "MLPClassifier"),
        Task("wine", loader("wine"), "MLPClassifier", {"solver": "lbfgs"}),
        Task(
            "iris",
            loader("iris"),
            "MLPClassifier",
            {"solver": "sgd", "learning_rate_init": 0.2, "max_iter": 400},
            MinMaxScaler,
        ),
        Task("diabetes", loader("diabetes"), "MLPRegressor", {"max_iter": 2000}),
        Task(
            "California-like",
            california_like,
            "MLPRegressor",
            {"hidden_layer_sizes": (30, 15), "learning_rate_init": 0.01, "early_stopping": True},
            functools.partial(QuantileTransformer, n_quantiles=100, random_state=0),
        ),
        Task("text", text, "MLPClassifier", {"max_iter": 30}, None),
        Task("labels", labels, "MLPClassifier", {"max_iter": 100}),
        Task("table", table, "MLPClassifier", {"max_iter": 10}),
        Task("Perceptron", loader("digits"), "Perceptron", scaler=MinMaxScaler),
    )
}


def prepare(task):
    """X and y to learn from, and those held back; the scaler knows the first only."""
    X, y = task.data()
    if TINY:
        X, y = X[:200], y[:200]
    X, X_test, y, y_test = train_test_split(X, y, test_size=TEST_SHARE, random_state=0)
    if task.scaler is not None:
        scaler = task.scaler().fit(X)
        X, X_test = scaler.transform(X), scaler.transform(X_test)
    return X, y, X_test, y_test


def pair(task, n_threads):
    """fastnn's estimator, and scikit-learn's."""
    params = {"random_state": 0, **task.params}
    if TINY and task.estimator != "Perceptron":
        params["max_iter"] = 5
    ours = getattr(fastnn.sklearn, task.estimator)
    return ours(**params, n_threads=n_threads), PEERS[task.estimator](**params)


def check(task, ours, theirs, scores):
    """Raise AssertionError where the two fits were not the same work; else how far apart they are.

    Returns
    -------
    float
        Relative difference of the final losses, or of the weights where there is no loss.
    """
    epochs = ours.n_iter_, theirs.n_iter_
    assert epochs[0] == epochs[1], f"{task.name}: {epochs[0]} epochs, not {epochs[1]}"
    assert abs(scores[0] - scores[1]) <= SCORE_BAND, f"{task.name}: scores {scores}"
    if task.estimator == "Perceptron":
        apart, limit = np.abs(ours.coef_ - theirs.coef_).max() / np.abs(theirs.coef_).max(), 0.0
    else:
        apart, limit = abs(ours.loss_ - theirs.loss_) / abs(theirs.loss_), LOSS_RTOL
    assert apart <= limit, f"{task.name}: apart by {apart:.2g}, more than {limit:g}"
    return float(apart)


# Measuring ----------------------------------------------------------------------------------------


def measure(task, n_threads, repeats, clock, statistic):
    """Seconds of a fit and of one row, for fastnn and scikit-learn, and how far they are apart."""
    X, y, X_test, y_test = prepare(task)
    estimators = pair(task, n_threads)
    fits, rows = ([], []), ([], [])
    asked = [X_test[i : i + 1] for i in range(min(N_ROWS_ASKED, X_test.shape[0]))]
    with warnings.catch_warnings(), threadpool_limits(n_threads):
        warnings.simplefilter("ignore", ConvergenceWarning)  # both stop where they are told to
        for repeat in range(20 * repeats):
            if repeat >= repeats and sum(fits[0]) + sum(fits[1]) > SHORT_SECONDS:
                break
            for k in (0, 1) if repeat % 2 == 0 else (1, 0):
                start = clock()
                estimators[k].fit(X, y)
                fits[k].append(clock() - start)
        scores = [estimator.score(X_test, y_test) for estimator in estimators]
        apart = check(task, *estimators, scores)
        for _ in range(ROW_ROUNDS):
            for k in (0, 1):
                predict = estimators[k].predict
                start = clock()
                for row in asked:
                    predict(row)
                rows[k].append((clock() - start) / len(asked))
    return {
        "task": task,
        "shape": X.shape,
        "n_iter": estimators[0].n_iter_,
        "fit": [statistic(seconds) for seconds in fits],
        "row": [statistic(seconds) for seconds in rows],
        "score": scores[0],
        "apart": apart,
    }


# Reporting ----------------------------------------------------------------------------------------

HEADS = [
    *("task", "rows × columns", "epochs", "scikit-learn", "fastnn", "times as fast"),
    *("one row: scikit-learn", "fastnn", "times as fast", "score", "apart"),
]


def duration(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return ""


def ratio(times):
    """How many times as long the second takes as the first."""
    value = times[1] / times[0]
    return f"{value:.0f} ×" if value >= 20 else f"{value:.1f} ×"


def line(found):
    task, (n_rows, n_columns) = found["task"], found["shape"]
    cells = [task.name, f"{n_rows:,} × {n_columns:,}", str(found["n_iter"])]
    for what in ("fit", "row"):
        ours, theirs = found[what]
        cells += [duration(theirs), duration(ours), ratio(found[what])]
    cells += [f"{found['score']:.3f}", f"{found['apart']:.0e}" if found["apart"] else "0"]
    return f"| {' | '.join(cells)} |"


def geometric_mean(results, what):
    return statistics.geometric_mean(found[what][1] / found[what][0] for found in results)


def environment(options, n_threads):
    """What the figures depend on."""
    facts = machine.info()
    facts.pop("fastnn_threads")
    facts |= {"scipy": scipy.__version__, "scikit-learn": sklearn.__version__}
    facts |= {"fastnn": fastnn.__version__, "threads": n_threads, "repeats": options.repeats}
    facts["clock"] = "CPU" if options.cpu else "wall"
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f}"
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--repeats", type=int, default=1 if TINY else 5, metavar="N")
    parser.add_argument("--median", action="store_true", help="of the repeats, not the fastest")
    parser.add_argument("--cpu", action="store_true", help="time of the CPU; for one thread")
    options = parser.parse_args()
    for name in options.tasks:
        if name not in TASKS:
            sys.exit(f"there is no task {name!r}: take some of {', '.join(TASKS)}")
    if options.cpu and options.threads != [1]:
        sys.exit("--cpu adds the times of all threads up: it is for --threads 1")
    clock = time.process_time if options.cpu else time.perf_counter
    statistic = statistics.median if options.median else min
    for n_threads in options.threads:
        print(environment(options, n_threads))
        print(f"\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        results = []
        for name in options.tasks or TASKS:
            results.append(measure(TASKS[name], n_threads, options.repeats, clock, statistic))
            print(line(results[-1]), flush=True)
        means = [f"{geometric_mean(results, what):.1f} ×" for what in ("fit", "row")]
        print(f"\ngeometric means: fit {means[0]}, one row {means[1]}\n")


if __name__ == "__main__":
    main()
