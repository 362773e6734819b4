"""What the guide is for, held to numbers apart from the pages' own checks."""

import numpy as np

XOR = np.array([0, 1, 1, 0])


def test_one_unit_never_learns_xor_and_three_compute_it(run_page):
    names = run_page("03_xor")[0].names
    unit = names["fastnn"].Perceptron(max_epochs=5000).fit(names["X"], XOR)
    assert not unit.converged_
    assert (unit.errors_ > 0).all()
    assert (names["y"] == XOR).all()
    # No weights of a fine grid do it either: 41 ** 3 units at once.
    grid = np.linspace(-2, 2, 41)
    w1, w2, b = (axis.ravel() for axis in np.meshgrid(grid, grid, grid))
    answers = names["X"] @ np.array([w1, w2]) + b > 0
    assert not (answers == XOR[:, None].astype(bool)).all(axis=0).any()


def test_xor_is_learned_in_all_three_ways_and_the_failures_are_told(run_page):
    names = run_page("04_backpropagation")[0].names
    assert list(names["WAYS"]) == [1, 2, "full"]
    for batch_size in names["WAYS"]:
        model, history = names["learn_xor"](batch_size, seed=0)
        assert list(model.plan.layer_sizes) == [2, 2, 1]
        assert model.plan.activations == ("sigmoid",)
        assert model.plan.output == "sigmoid"
        assert np.abs(model.predict(names["X"])[:, 0] - XOR).max() < 0.05
        assert history.loss[-1] < 1e-3
        assert 50 <= names["right"][batch_size] <= 95
        assert names["roomy"][batch_size] >= 95


def test_gradient_descent_crosses_its_border_where_theory_says(run_page):
    names = run_page("05_learning_rate")[0].names
    border = 2 / names["curvatures"].max()
    below, above = (names["descend"](factor * border, 3000)[0] for factor in (0.99, 1.01))
    best = 0.5 * np.mean((np.polyval(np.polyfit(names["x"][:, 0], names["t"], 1), names["x"][:, 0])
                          - names["t"]) ** 2)  # fmt: skip
    assert abs(below[-1] - best) < 1e-9
    assert above[-1] > 1e6


def test_digits_are_read(run_page):
    names = run_page("08_digits")[0].names
    train, validation, test = (
        set(names[name].tolist()) for name in ("train", "validation", "test")
    )
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 1797
    assert names["accuracy"] >= 0.97
    assert names["confusion"].sum() == len(test)
    assert np.trace(names["confusion"]) / len(test) == names["accuracy"]
