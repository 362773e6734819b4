"""Optimizers: first steps by hand, scalars that no split of calls changes, settings, LBFGS."""

import copy
import json
import math
import pickle
import sys

import numpy as np
import pytest

from fastnn.tables.optimizers import (
    LBFGS,
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LBFGSState,
    Nadam,
    RMSprop,
    Rprop,
    get_optimizer,
    resolve_optimizer,
)

STEPPED = [
    SGD(0.1),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.1),
    AdamW(0.1),
    Nadam(0.1),
    RMSprop(0.1),
    RMSprop(0.1, momentum=0.5),
    Adagrad(0.1),
    Rprop(0.1),
]


def kernel(optimizer):
    return optimizer.kernel


def take_steps(optimizer, w, gradients, rates=None):
    """The parameters after each step."""
    w = np.array(w, float)
    rates = np.full(len(gradients), optimizer.learning_rate) if rates is None else np.array(rates)
    slots = np.full((optimizer.n_slots, w.size), np.nan)
    optimizer.init_slots(slots)
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), rates)
    path = []
    for g, h in zip(gradients, scalars, strict=True):
        optimizer.update(w, np.array(g, float), slots, h)
        path.append(w.copy())
    return path


def first_step(optimizer, g):
    return take_steps(optimizer, [0.0], [[g]])[0][0]


# First steps --------------------------------------------------------------------------------------


def test_adam_is_the_textbooks():  # cases G3, G4, G5
    # m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is rate g / (|g| + epsilon).
    assert first_step(Adam(), 1e-3) == pytest.approx(-9.99990e-4, rel=1e-7)
    assert first_step(Adam(), 1e-3) == pytest.approx(-1e-3 * 1e-3 / (1e-3 + 1e-8), rel=1e-12)
    assert first_step(Adam(), 1e-7) == pytest.approx(-9.0909e-4, rel=1e-5)
    assert first_step(Adam(), -5.0) == pytest.approx(1e-3, rel=1e-8)


def test_adams_counter_starts_at_one():  # case G5
    g, b1, b2, rate = 0.3, 0.9, 0.999, 1e-3
    m = v = w = 0.0
    expected = []
    for t in range(1, 6):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8)
        expected.append(w)
    path = take_steps(Adam(), [0.0], [[g]] * 5)
    np.testing.assert_allclose(np.ravel(path), expected, rtol=1e-13)


def test_adamw_decays_apart_from_the_gradient():
    # Without a gradient only the decay is left: w (1 - rate weight_decay).
    assert take_steps(AdamW(0.1, weight_decay=0.5), [2.0], [[0.0]])[0] == [2.0 * 0.95]
    both = take_steps(AdamW(0.1, weight_decay=0.5), [2.0], [[4.0]])[0][0]
    assert both == pytest.approx(2.0 * 0.95 - 0.1, rel=1e-8)
    assert take_steps(AdamW(0.1, weight_decay=0), [2.0], [[4.0]]) == take_steps(
        Adam(0.1), [2.0], [[4.0]]
    )


def test_momentum():
    gradients = [[1.0], [2.0], [-1.0]]
    v1, v2, v3 = 1.0, 0.5 + 2.0, 1.25 - 1.0
    path = take_steps(SGD(0.1, momentum=0.5), [0.0], gradients)
    np.testing.assert_allclose(np.ravel(path), -0.1 * np.cumsum([v1, v2, v3]), rtol=1e-14)
    path = take_steps(SGD(0.1, momentum=0.5, nesterov=True), [0.0], gradients)
    ahead = [1 + v1 / 2, 2 + v2 / 2, -1 + v3 / 2]
    np.testing.assert_allclose(np.ravel(path), -0.1 * np.cumsum(ahead), rtol=1e-14)


def test_first_steps():
    assert first_step(SGD(0.1), 3.0) == -0.1 * 3
    assert first_step(Adagrad(0.1), 3.0) == pytest.approx(-0.1, rel=1e-9)
    assert first_step(RMSprop(0.1, rho=0.75), 3.0) == pytest.approx(-0.1 / 0.5, rel=1e-7)
    assert first_step(RMSprop(0.1, rho=0.75, momentum=0.9), 3.0) == pytest.approx(-0.2, rel=1e-7)
    assert first_step(Rprop(0.1), 3.0) == -0.1
    # Dozat: mu_1 = 0.9 (1 - 0.96^0.004 / 2), and mu_2 likewise; m = 0.1 g, v corrected to g^2.
    mu1, mu2 = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in (1, 2))
    expected = -0.1 * ((1 - mu1) / (1 - mu1) + 0.1 * mu2 / (1 - mu1 * mu2))
    assert first_step(Nadam(0.1), 3.0) == pytest.approx(expected, rel=1e-8)


def test_adagrad_remembers_all_gradients():
    path = np.ravel(take_steps(Adagrad(1.0), [0.0], [[3.0], [4.0]]))
    np.testing.assert_allclose(path, [-1, -1 - 4 / 5], rtol=1e-9)


def test_rprop_grows_shrinks_and_waits():
    gradients = [[1.0], [1.0], [-1.0], [-1.0], [-1.0], [0.0], [5.0]]
    moves = np.diff(np.ravel([[0.0], *take_steps(Rprop(0.1), [0.0], gradients)]))
    # Grow by 1.2; shrink by 0.5 and wait; nothing to compare with; grow; no slope; as before.
    expected = [-0.1, -0.12, 0, 0.06, 0.072, 0, -0.072]
    np.testing.assert_allclose(moves, expected, rtol=1e-14, atol=1e-16)


def test_rprop_keeps_its_steps_in_bounds():
    optimizer = Rprop(0.1, min_step=0.05, max_step=0.2)
    moves = -np.diff(np.ravel([[0.0], *take_steps(optimizer, [0.0], [[1.0]] * 8)]))
    assert moves[-1] == pytest.approx(0.2)
    signs = [[(-1.0) ** (i // 2)] for i in range(8)]
    moves = np.diff(np.ravel([[0.0], *take_steps(optimizer, [0.0], signs)]))
    assert np.abs(moves[moves != 0]).min() == pytest.approx(0.05)


@pytest.mark.parametrize("optimizer", STEPPED, ids=kernel)
def test_parameters_do_not_see_each_other(optimizer):  # case G10
    gradients = np.random.default_rng(0).normal(size=(20, 3))
    together = take_steps(optimizer, np.ones(3), gradients)
    for i in range(3):
        alone = take_steps(optimizer, [1.0], gradients[:, i : i + 1])
        assert np.ravel(alone).tolist() == np.array(together)[:, i].tolist()
    assert (together[0] != 1).all()


# Scalars ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", STEPPED, ids=kernel)
def test_no_split_of_the_steps_shows(optimizer):  # case S9
    rates = np.random.default_rng(1).uniform(0.01, 0.2, 100)
    whole, end = optimizer.step_scalars(optimizer.init_counters(), rates)
    assert whole.dtype == np.float64
    assert whole.flags.c_contiguous
    assert len(whole) == 100
    parts, counters = [], optimizer.init_counters()
    for n in (1, 0, 2, 30, 1, 66):
        at = sum(map(len, parts))
        scalars, counters = optimizer.step_scalars(counters, rates[at : at + n])
        counters = json.loads(json.dumps(counters))  # as in a file
        parts.append(scalars)
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert counters == end


@pytest.mark.parametrize("optimizer", STEPPED, ids=kernel)
def test_scalars_do_not_change_what_they_are_given(optimizer):
    counters = optimizer.init_counters()
    before, rates = dict(counters), np.full(3, 0.1)
    optimizer.step_scalars(counters, rates)
    assert counters == before
    assert rates.tolist() == [0.1] * 3


@pytest.mark.parametrize("optimizer", STEPPED, ids=kernel)
def test_a_rate_of_zero_does_not_move(optimizer):
    if isinstance(optimizer, Rprop):
        rates = [0.1, 0.0, 0.1]
    else:
        rates = [0.0, 0.0, 0.1]
    path = take_steps(optimizer, [1.0], [[1.0]] * 3, rates)
    assert path[1] == path[0]
    assert path[2] != path[1]


def test_moments_for_a_very_long_time():
    """After 10^6 steps the corrections are 1, and nothing has become a NaN."""
    for optimizer in (Adam(), AdamW(), Nadam()):
        scalars, counters = optimizer.step_scalars(optimizer.init_counters(), np.full(10**6, 1e-3))
        assert np.isfinite(scalars).all()
        assert all(math.isfinite(value) for value in counters.values())
    scalars, _ = Adam().step_scalars({"beta1_power": 0.0, "beta2_power": 0.0}, np.full(1, 1e-3))
    assert scalars[0, :2].tolist() == [1e-3, 1]


def test_rprop_starts_with_its_learning_rate():
    slots = np.full((2, 4), np.nan)
    Rprop(0.25).init_slots(slots)
    assert slots.tolist() == [[0] * 4, [0.25] * 4]


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [*STEPPED, LBFGS(history=3)], ids=kernel)
def test_objects_are_values(optimizer):
    for other in (
        pickle.loads(pickle.dumps(optimizer)),
        copy.deepcopy(optimizer),
        get_optimizer(json.loads(json.dumps(optimizer.get_config()))),
        eval(repr(optimizer)),
    ):
        assert other == optimizer
        assert hash(other) == hash(optimizer)
        assert other.kernel == optimizer.kernel
    assert optimizer != type(optimizer)() or optimizer == SGD()
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 3


def test_defaults():
    assert SGD() == SGD(learning_rate=0.01, momentum=0.0, nesterov=False)
    assert Adam() == Adam(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8)
    assert AdamW() == AdamW(1e-3, 0.9, 0.999, 1e-8, weight_decay=0.01)
    assert Nadam() == Nadam(2e-3, 0.9, 0.999, 1e-8, momentum_decay=4e-3)
    assert RMSprop() == RMSprop(learning_rate=1e-3, rho=0.9, epsilon=1e-8, momentum=0.0)
    assert Adagrad() == Adagrad(learning_rate=0.01, epsilon=1e-10)
    assert Rprop() == Rprop(0.01, eta_minus=0.5, eta_plus=1.2, min_step=1e-6, max_step=50.0)
    assert AdamW() != Adam()


def test_numpy_numbers_are_numbers():
    optimizer = SGD(np.float32(0.5), momentum=np.float64(0.25), nesterov=np.bool_(True))
    assert optimizer == SGD(0.5, 0.25, True)
    assert type(optimizer.learning_rate) is float
    assert type(optimizer.nesterov) is bool
    assert SGD(1).learning_rate == 1.0
    assert SGD(np.array(0.5)) == SGD(0.5)
    assert type(LBFGS(history=np.int64(3)).history) is int


@pytest.mark.parametrize(
    ("cls", "settings", "kind"),
    [
        *(
            (cls, {"learning_rate": value}, kind)
            for cls in OPTIMIZERS.values()
            if cls is not LBFGS
            for value, kind in (
                (-1e-3, ValueError),
                (math.nan, ValueError),
                (math.inf, ValueError),
                ("0.1", TypeError),
                (True, TypeError),
                (None, TypeError),
                (1j, TypeError),
                ([0.1], TypeError),
            )
        ),
        (SGD, {"momentum": 1.0}, ValueError),
        (SGD, {"momentum": -0.1}, ValueError),
        (SGD, {"nesterov": 1}, TypeError),
        (SGD, {"nesterov": True}, ValueError),
        (Adam, {"beta1": 1.0}, ValueError),
        (Adam, {"beta2": 1.0}, ValueError),
        (Adam, {"beta2": -0.5}, ValueError),
        (Adam, {"epsilon": 0.0}, ValueError),
        (AdamW, {"weight_decay": -1}, ValueError),
        (Nadam, {"momentum_decay": -1}, ValueError),
        (RMSprop, {"rho": 1.0}, ValueError),
        (RMSprop, {"momentum": 1.0}, ValueError),
        (Adagrad, {"epsilon": 0}, ValueError),
        (Rprop, {"learning_rate": 0.0}, ValueError),
        (Rprop, {"eta_minus": 1.0}, ValueError),
        (Rprop, {"eta_minus": 0.0}, ValueError),
        (Rprop, {"eta_plus": 1.0}, ValueError),
        (Rprop, {"min_step": 2.0, "max_step": 1.0}, ValueError),
        (LBFGS, {"history": 0}, ValueError),
        (LBFGS, {"history": 2.0}, TypeError),
        (LBFGS, {"max_line_search": True}, TypeError),
        (LBFGS, {"tolerance": -1.0}, ValueError),
    ],
)
def test_wrong_settings(cls, settings, kind):
    with pytest.raises(kind, match=next(iter(settings))):
        cls(**settings)


def test_names():
    assert list(OPTIMIZERS) == [
        *("sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "rprop", "lbfgs")
    ]
    for name, cls in OPTIMIZERS.items():
        assert resolve_optimizer(name) == cls()
        assert resolve_optimizer(resolve_optimizer(name)) == cls()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ("nope", ValueError),
        ("Adam", ValueError),
        (3, TypeError),
        (Adam, TypeError),
        (None, TypeError),
    ],
)
def test_wrong_optimizers(wrong, kind):
    with pytest.raises(kind, match="optimizer must be one of sgd, adam, "):
        resolve_optimizer(wrong)


@pytest.mark.parametrize("config", [{}, {"name": "nope"}, {"name": "sgd", "wings": 2}])
def test_wrong_configs(config):
    with pytest.raises((ValueError, TypeError)):
        get_optimizer(config)


# LBFGS --------------------------------------------------------------------------------------------


def rosenbrock(x):
    """Nocedal & Wright, exercise 2.1, in any even number of dimensions; its minimum is all ones."""
    a, b = x[::2], x[1::2]
    gradient = np.empty_like(x)
    gradient[::2] = -400 * a * (b - a * a) - 2 * (1 - a)
    gradient[1::2] = 200 * (b - a * a)
    return float((100 * (b - a * a) ** 2 + (1 - a) ** 2).sum()), gradient


def iterate(optimizer, objective, x, n, state=None):
    state = LBFGSState() if state is None else state
    values = []
    for _ in range(n):
        x, value = optimizer.iterate(objective, x, state)
        values.append(value)
    return x, values, state


def test_lbfgs_finds_the_minimum_of_rosenbrocks_function():
    x, values, state = iterate(LBFGS(), rosenbrock, np.array([-1.2, 1.0] * 3), 60)
    np.testing.assert_allclose(x, 1, atol=1e-6)
    assert (np.diff(values) <= 0).all()
    assert values[0] == rosenbrock(np.array([-1.2, 1.0] * 3))[0]
    assert state.converged


def test_lbfgs_is_exact_on_a_quadratic():
    """With exact curvature along each direction, n dimensions take few more than n iterations."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(8, 8))
    A = A @ A.T + np.eye(8)
    b = rng.normal(size=8)
    x, _, _ = iterate(
        LBFGS(history=20), lambda x: (float(x @ A @ x / 2 - b @ x), A @ x - b), np.zeros(8), 40
    )
    np.testing.assert_allclose(x, np.linalg.solve(A, b), atol=1e-8)


def test_lbfgs_direction_is_that_of_the_dense_update():
    """The two loops against the inverse Hessian of equation 7.16 in Nocedal & Wright."""
    rng = np.random.default_rng(2)
    s = list(rng.normal(size=(3, 5)))
    y = [si + 0.1 * rng.normal(size=5) for si in s]
    gradient = rng.normal(size=5)
    assert all(a @ b > 0 for a, b in zip(s, y, strict=True))
    H = np.eye(5) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for si, yi in zip(s, y, strict=True):
        rho = 1 / (yi @ si)
        V = np.eye(5) - rho * np.outer(yi, si)
        H = V.T @ H @ V + rho * np.outer(si, si)
    direction = LBFGS()._direction(gradient, LBFGSState(s, y))
    np.testing.assert_allclose(direction, -H @ gradient, rtol=1e-10)


def test_lbfgs_continues_from_its_state():
    start = np.array([-1.2, 1.0])
    whole, _, end = iterate(LBFGS(), rosenbrock, start, 12)
    x, _, state = iterate(LBFGS(), rosenbrock, start, 5)
    x, _, state = iterate(LBFGS(), rosenbrock, x, 7, pickle.loads(pickle.dumps(state)))
    assert x.tobytes() == whole.tobytes()
    assert len(state.s) == len(end.s)
    assert np.array(state.s).tobytes() == np.array(end.s).tobytes()


def test_lbfgs_keeps_as_many_pairs_as_it_should():
    _, _, state = iterate(LBFGS(history=4), rosenbrock, np.array([-1.2, 1.0] * 2), 10)
    assert len(state.s) == len(state.y) == 4


def test_lbfgs_stays_at_a_minimum():
    x, values, state = iterate(LBFGS(), rosenbrock, np.ones(4), 3)
    assert state.converged
    assert x.tolist() == [1] * 4
    assert values == [0, 0, 0]
    assert state.s == []


def test_lbfgs_never_climbs_a_kink():
    """|x| has no slope to trust: the search may end, but never higher than it began."""

    def objective(x):
        return float(np.abs(x).sum()), np.sign(x)

    x, values, _ = iterate(LBFGS(), objective, np.array([3.3, -1.7]), 30)
    assert (np.diff(values) <= 0).all()
    assert np.abs(x).sum() <= 1


def test_lbfgs_reports_what_is_not_finite():
    x, value = LBFGS().iterate(lambda x: (math.nan, x * math.nan), np.ones(2), LBFGSState())
    assert math.isnan(value)
    assert x.tolist() == [1, 1]


def test_lbfgs_asks_for_no_point_twice():
    asked = []

    def objective(x):
        asked.append(x.tobytes())
        return rosenbrock(x)

    LBFGS().iterate(objective, np.array([-1.2, 1.0]), LBFGSState())
    assert len(asked) == len(set(asked))


def test_lbfgs_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        LBFGS().iterate(rosenbrock, np.array([-1.2, 1.0]), LBFGSState())


def test_importing_the_tables_does_not_import_scipy():
    import subprocess

    code = "import sys, fastnn.tables.optimizers; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
