"""show_config says what one needs to report a fault."""

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
