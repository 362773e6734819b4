"""Schedules: formulas, one rate per step however calls are split, and errors that name the step."""

import copy
import json
import math
import pickle

import numpy as np
import pytest

from fastnn.schedules import (
    SCHEDULES,
    ConstantRate,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    OneCycle,
    StepDecay,
    Warmup,
    get_schedule,
    resolve_schedule,
)

ALL = [
    ConstantRate(0.3),
    StepDecay(0.3, drop=0.7, every=9),
    ExponentialDecay(0.3, decay=0.2, n_steps=37),
    CosineDecay(0.3, n_steps=60, final=0.1),
    OneCycle(0.3, n_steps=80),
    InverseScaling(0.3, power=0.7),
    Warmup(CosineDecay(0.3, n_steps=60), n_steps=13),
    Warmup(Warmup(StepDecay(0.3), 3), 4),
]


def name(schedule):
    return schedule.name


def rates(schedule, n_steps, base=0.01, first=0):
    return resolve_schedule(schedule, base)(np.arange(first, first + n_steps))


# Formulas -----------------------------------------------------------------------------------------


def test_constant():
    assert rates(None, 3).tolist() == [0.01] * 3
    assert rates("constant", 3).tolist() == [0.01] * 3
    assert rates(ConstantRate(0.5), 3).tolist() == [0.5] * 3


def test_step_decay():
    got = StepDecay(0.8, drop=0.5, every=3)(np.arange(8))
    assert got.tolist() == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]


def test_exponential_decay():
    got = ExponentialDecay(0.8, decay=0.25, n_steps=10)(np.array([0, 5, 10, 20]))
    np.testing.assert_allclose(got, [0.8, 0.4, 0.2, 0.05], rtol=1e-15)


def test_cosine_decay():
    got = CosineDecay(2.0, n_steps=6)(np.array([0, 2, 3, 4, 6, 7, 10**9]))
    np.testing.assert_allclose(got, [2, 1.5, 1, 0.5, 0, 0, 0], atol=1e-15)
    # Cosine from 2 down to a quarter of it: the middle is halfway.
    got = CosineDecay(2.0, n_steps=6, final=0.25)(np.array([0, 3, 6, 99]))
    np.testing.assert_allclose(got, [2, 1.25, 0.5, 0.5], rtol=1e-15)


def test_one_cycle():
    schedule = OneCycle(2.0, n_steps=20, warm=0.4, start=0.1, final=0.01)
    got = schedule(np.array([0, 4, 8, 14, 20, 21, 10**9]))
    expected = [0.2, (0.2 + 2) / 2, 2, (2 + 0.02) / 2, 0.02, 0.02, 0.02]
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    curve = schedule(np.arange(20))
    assert (np.diff(curve[:9]) > 0).all()
    assert (np.diff(curve[8:]) < 0).all()
    assert OneCycle(2.0, n_steps=5, warm=0.0)(0) == 2.0
    assert OneCycle(2.0, n_steps=5, warm=1.0, final=0.5)(np.array([4, 5])).tolist()[1] == 1.0


def test_inverse_scaling():
    got = InverseScaling(0.6)(np.array([0, 3, 99]))
    np.testing.assert_allclose(got, [0.6, 0.3, 0.06], rtol=1e-15)


def test_warmup():
    got = Warmup(StepDecay(0.8, every=2), n_steps=4)(np.arange(9))
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2], rtol=1e-15)
    # By default the rate stays; a rate of its own is for a `then` without one.
    np.testing.assert_allclose(
        Warmup(n_steps=2, learning_rate=0.5)(np.arange(4)), [0.25, *[0.5] * 3]
    )
    np.testing.assert_allclose(rates(Warmup(n_steps=2), 4, base=0.5), [0.25, *[0.5] * 3])
    np.testing.assert_allclose(rates(Warmup(CosineDecay(2.0, 4), 2), 7, base=9.0)[1:3], 2.0)
    np.testing.assert_allclose(rates(Warmup("constant", 2), 3, base=0.5), [0.25, 0.5, 0.5])
    # Any callable will do: it sees the steps since the end of the warm-up.
    got = rates(Warmup(lambda step: 1 / (1 + step), 2), 5)
    np.testing.assert_allclose(got, [0.5, 1, 1, 1 / 2, 1 / 3])


# One rate per step --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_no_split_of_the_steps_shows(schedule):
    whole = rates(schedule, 200)
    assert whole.dtype == np.float64
    for n in (1, 7, 33):
        parts = [rates(schedule, min(n, 200 - at), first=at) for at in range(0, 200, n)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert [schedule(step) for step in range(200)] == whole.tolist()
    assert [schedule(np.int64(step)) for step in range(3)] == whole[:3].tolist()


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_rates_are_sane_for_ever(schedule):
    got = rates(schedule, 3, first=10**12)
    assert np.isfinite(got).all()
    assert (got >= 0).all()
    assert rates(schedule, 0).shape == (0,)


def test_a_callable_is_asked_once_for_each_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.1

    assert rates(schedule, 4, first=3).tolist() == [0.1] * 4
    assert asked == [3, 4, 5, 6]
    assert all(type(step) is int for step in asked)


def test_numbers_of_any_kind_are_rates():
    for value in (1, np.float32(0.5), np.array(0.25), np.int8(2)):
        assert rates(lambda step, value=value: value, 2).tolist() == [float(value)] * 2


# Binding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SCHEDULES.values())
def test_the_optimizers_rate_is_the_default(cls):
    schedule = cls()
    bound = rates(schedule, 5, base=0.25)
    assert bound.tolist() == rates(cls(learning_rate=0.25), 5, base=99.0).tolist()
    np.testing.assert_allclose(2 * bound, rates(schedule, 5, base=0.5), rtol=1e-15)
    with pytest.raises(ValueError, match="no learning_rate yet"):
        schedule(0)
    assert schedule.learning_rate is None  # and nobody has bound this one


# Objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [*ALL, *(cls() for cls in SCHEDULES.values())], ids=name)
def test_objects_are_values(schedule):
    config = json.loads(json.dumps(schedule.get_config()))
    for other in (
        get_schedule(config),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert other == schedule
        assert repr(other) == repr(schedule)
        assert rates(other, 20).tolist() == rates(schedule, 20).tolist()
    with pytest.raises(AttributeError):
        schedule.learning_rate = 1.0


def test_names():
    assert list(SCHEDULES) == [
        *("constant", "step_decay", "exponential_decay", "cosine_decay"),
        *("one_cycle", "inverse_scaling", "warmup"),
    ]
    for key, cls in SCHEDULES.items():
        assert get_schedule(key) == cls()


def test_code_is_not_written_to_files():
    with pytest.raises(TypeError, match="cannot be written to a file"):
        Warmup(lambda step: 0.1).get_config()


@pytest.mark.parametrize(
    ("cls", "settings", "kind"),
    [
        *(
            (cls, {"learning_rate": value}, kind)
            for cls in SCHEDULES.values()
            for value, kind in (
                (-0.1, ValueError),
                (math.nan, ValueError),
                (math.inf, ValueError),
                ("0.1", TypeError),
                (True, TypeError),
            )
        ),
        (StepDecay, {"drop": -0.1}, ValueError),
        (StepDecay, {"drop": 1.1}, ValueError),
        (StepDecay, {"every": 0}, ValueError),
        (StepDecay, {"every": 2.0}, TypeError),
        (ExponentialDecay, {"decay": 2}, ValueError),
        (ExponentialDecay, {"n_steps": 0}, ValueError),
        (CosineDecay, {"n_steps": 0}, ValueError),
        (CosineDecay, {"n_steps": True}, TypeError),
        (CosineDecay, {"final": 1.5}, ValueError),
        (OneCycle, {"warm": -0.1}, ValueError),
        (OneCycle, {"start": 2}, ValueError),
        (OneCycle, {"final": math.nan}, ValueError),
        (InverseScaling, {"power": -1}, ValueError),
        (Warmup, {"n_steps": 0}, ValueError),
        (Warmup, {"then": 3}, TypeError),
        (Warmup, {"then": "nope"}, ValueError),
    ],
)
def test_wrong_settings(cls, settings, kind):
    with pytest.raises(kind):
        cls(**settings)


def test_numpy_numbers_are_numbers():
    assert CosineDecay(np.float32(0.5), np.int64(10)) == CosineDecay(0.5, 10)
    assert type(CosineDecay(np.float32(0.5)).learning_rate) is float


@pytest.mark.parametrize("wrong", [0.1, 3, [0.1], CosineDecay])
def test_what_is_no_schedule(wrong):
    with pytest.raises(TypeError, match=r"^schedule must be a name, a schedule object such as"):
        resolve_schedule(wrong, 0.1)


@pytest.mark.parametrize("wrong", ["nope", "StepDecay", ""])
def test_unknown_names(wrong):
    with pytest.raises(ValueError, match="schedule must be one of constant, step_decay, "):
        resolve_schedule(wrong, 0.1)


@pytest.mark.parametrize("config", [{}, {"name": "constant", "wings": 2}, {"every": 3}])
def test_wrong_configs(config):
    with pytest.raises((ValueError, TypeError)):
        get_schedule(config)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-1e-9, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        (True, TypeError),
        ([0.1, 0.2], TypeError),
    ],
)
def test_wrong_rates_name_their_step(value, kind):
    with pytest.raises(kind, match=r"^the schedule's rate of step 7 must be "):
        rates(lambda step: 0.1 if step < 7 else value, 10)
    with pytest.raises(kind, match=r"^the schedule's rate of step \d+ must be "):
        rates(Warmup(lambda step: 0.1 if step < 3 else value, n_steps=4), 10)
