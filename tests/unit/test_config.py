"""show_config says what one needs to report a fault."""

import re

import numpy as np

import fastnn


def test_what_it_prints(capsys, monkeypatch):
    monkeypatch.setenv("FASTNN_NUM_THREADS", "1")
    assert fastnn.show_config() is None
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    values = {name: value.strip() for name, value in lines.items()}
    assert values["fastnn"] == fastnn.__version__
    assert values["NumPy"] == np.__version__
    assert values["threads"] == "1"
    assert "reference" in values["backends"]
    assert values["instruction set"]


def test_numba_says_what_it_has_compiled(capsys):
    model = fastnn.MLP([2, 1], seed=0, backend="numba")
    model.predict(np.zeros((1, 2)))
    fastnn.show_config()
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("numba:")]
    n, seconds = re.search(r"(\d+) functions compiled in ([\d.]+) s", line).groups()
    assert int(n) >= 4  # X, the product, the link and the driver
    assert float(seconds) > 0
    assert "FASTNN_NUMBA_CACHE=1" in line
