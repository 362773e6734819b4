"""Train, predict, save and load with the installed package; prints a digest of every bit.

The digest must be the same on every Python that loads the same wheel on the same machine.
"""

import hashlib
import pickle
import tempfile
from pathlib import Path

import numpy as np

import fastnn


def main() -> None:
    """Print the SHA-256 of weights, loss curve and predictions of two short trainings."""
    X, y = fastnn.datasets.load_digits()
    digest = hashlib.sha256()
    for dtype in ("float32", "float64"):
        model = fastnn.MLP([64, 32, 10], output="softmax", dropout=0.1, dtype=dtype, seed=1)
        trainer = fastnn.Trainer(model, optimizer="adam", seed=2, n_threads=2)
        history = trainer.fit(X, y, epochs=3)
        predictions = model.predict(X[:100])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            model.save(path)
            np.testing.assert_array_equal(fastnn.MLP.load(path).predict(X[:100]), predictions)
        np.testing.assert_array_equal(
            pickle.loads(pickle.dumps(model)).predict(X[:100]), predictions
        )
        for array in (model.parameters, history.loss, predictions):
            digest.update(np.ascontiguousarray(array).tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
