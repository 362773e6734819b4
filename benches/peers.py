"""The same work in the packages that a user would pick instead, each written as its users would.

A peer is made for a workload, a number of threads and a dtype; what it compiles, it compiles then.
`run(seed)` does the whole work: a training from `initial_parameters` over fresh orders of the rows
with every row in every epoch, and hands back what the evaluator scores: the parameters of a
training, or of each of many; weights and bias of perceptrons; the outputs of an inference.
"""

import importlib
import importlib.util
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from workloads import (
    ErrorCorrection,
    Inference,
    Training,
    initial_parameters,
    load,
    orders,
)

from fastnn import _numpy_training
from fastnn._numpy_training import BETA1, BETA2, EPSILON, MOMENTUM

REGISTRY: list[type["Peer"]] = []


class Peer:
    """One package doing one kind of workload."""

    name = ""
    needs = ""  # the package to import
    kind: type = Training
    dtypes = ("float32",)
    only: tuple[str, ...] = ()  # workloads, where not all of the kind
    one_thread_only = False

    def __init_subclass__(cls):
        if cls.name:
            REGISTRY.append(cls)

    def __init__(self, workload, n_threads: int, dtype: str = "float32"):
        self.workload, self.n_threads, self.dtype = workload, n_threads, dtype
        if not isinstance(workload, Inference):
            self.X, self.y = load(workload.data, dtype)
        else:
            self.parameters = inference_parameters(workload)
            self.X = inference_rows(workload)
        self.prepare()

    def prepare(self) -> None:
        """Import, compile, move data."""

    def run(self, seed: int):
        """The work, from start to end."""
        raise NotImplementedError

    @classmethod
    def handles(cls, workload, n_threads: int, dtype: str) -> bool:
        return (
            type(workload) is cls.kind
            and dtype in cls.dtypes
            and (not cls.only or workload.name in cls.only)
            and (n_threads == 1 or not cls.one_thread_only)
            and importlib.util.find_spec(cls.needs) is not None
        )


def find(workload, n_threads: int, dtype: str = "float32") -> dict[str, type[Peer]]:
    """The peers that are installed and do this workload, by name."""
    found = [cls for cls in REGISTRY if cls.handles(workload, n_threads, dtype)]
    return {cls.name: cls for cls in found}


def inference_parameters(workload: Inference):
    rng = np.random.default_rng(3)
    pairs = initial_parameters(workload.layer_sizes, workload.activation, 3)
    return [(W, (0.1 * rng.standard_normal(len(b))).astype(np.float32)) for W, b in pairs]


def inference_rows(workload: Inference) -> np.ndarray:
    if workload.layer_sizes[0] == 784:
        X = load("fashion")[0]
        return X[:256] if workload.one_row else X
    return load("curve")[0][:256]


ONE_BY_ONE = ("W1", "W1b", "W1c", "W1z", "W1d", "W2", "W3", "W4a", "W4b")
SMALL = ("W3", "W4a", "W4b")
LARGE = ("W1", "W1b", "W1c", "W1z", "W1d", "W2")


# fastnn -------------------------------------------------------------------------------------------


class Fastnn(Peer):
    name, needs, dtypes = "fastnn", "fastnn", ("float32", "float64")

    def trainer(self, seed, n_threads):
        import fastnn

        w = self.workload
        model = fastnn.MLP(
            w.layer_sizes, activation=w.activation, output=w.output, dtype=self.dtype, seed=seed
        )
        set_parameters(model, initial_parameters(w.layer_sizes, w.activation, seed, self.dtype))
        adam = w.optimizer == "adam"
        optimizer = fastnn.Adam if adam else fastnn.SGD
        settings = {} if adam else {"momentum": MOMENTUM}
        return fastnn.Trainer(
            model,
            optimizer=optimizer(w.learning_rate, **settings),
            batch_size=w.batch_size,
            seed=seed,
            n_threads=n_threads,
        )

    def run(self, seed):
        import fastnn

        epochs = self.workload.epochs
        if self.workload.n_models == 1:
            trainer = self.trainer(seed, self.n_threads)
            trainer.fit(self.X, self.y, epochs=epochs)
            return parameters_of(trainer.model)
        trainers = [self.trainer(s, 1) for s in range(self.workload.n_models)]
        fastnn.train_many(trainers, self.X, self.y, epochs=epochs, n_threads=self.n_threads)
        return [parameters_of(trainer.model) for trainer in trainers]


def set_parameters(model, pairs):
    for k, (W, b) in enumerate(pairs):
        model.weights[k], model.biases[k] = W, b


def parameters_of(model):
    return list(zip(model.weights, model.biases, strict=True))


class FastnnInference(Peer):
    name, needs, kind = "fastnn", "fastnn", Inference

    def prepare(self):
        import fastnn

        w = self.workload
        self.model = fastnn.MLP(
            w.layer_sizes, activation=w.activation, output=w.output, dtype="float32", seed=0
        )
        set_parameters(self.model, self.parameters)

    def predict(self, X):
        return self.model.predict(X)

    def run(self, seed):
        return self.predict(self.X)


class FastnnPerceptron(Peer):
    name, needs, kind = "fastnn", "fastnn", ErrorCorrection

    def prepare(self):
        k = self.workload.n_classes
        self.t = self.y if k == 2 else (self.y[:, None] == np.arange(k)).astype(np.int8)

    def run(self, seed):
        import fastnn

        unit = fastnn.Perceptron(
            max_epochs=self.workload.epochs, shuffle=True, seed=seed, dtype="float32"
        )
        unit.fit(self.X, self.t)
        return unit.weights.reshape(self.X.shape[1], -1), np.atleast_1d(unit.bias)


# scikit-learn -------------------------------------------------------------------------------------


def sklearn_fit(workload, seed, X, y):
    """MLPClassifier or MLPRegressor with everything switched off that would end it early."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    regression = workload.output == "identity"
    settings = {} if workload.optimizer == "adam" else {"momentum": MOMENTUM}
    estimator = (MLPRegressor if regression else MLPClassifier)(
        hidden_layer_sizes=workload.layer_sizes[1:-1],
        activation={"sigmoid": "logistic"}.get(workload.activation, workload.activation),
        solver="adam" if workload.optimizer == "adam" else "sgd",
        alpha=0.0,
        batch_size=workload.batch_size,
        learning_rate_init=workload.learning_rate,
        max_iter=workload.epochs,
        tol=0.0,
        n_iter_no_change=10**9,
        random_state=seed,
        **({"nesterovs_momentum": False, **settings} if settings else {}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, y.ravel() if regression else y.ravel().astype(np.int64))
    assert estimator.n_iter_ == workload.epochs
    return list(zip(estimator.coefs_, estimator.intercepts_, strict=True))


class ScikitLearn(Peer):
    name, needs, dtypes = "scikit-learn", "sklearn", ("float32", "float64")

    def run(self, seed):
        w = self.workload
        if w.n_models == 1:
            return sklearn_fit(w, seed, self.X, self.y)
        from joblib import Parallel, delayed

        fit = delayed(sklearn_fit)
        return Parallel(n_jobs=self.n_threads)(fit(w, s, self.X, self.y) for s in range(w.n_models))


class ScikitLearnInference(Peer):
    name, needs, kind = "scikit-learn", "sklearn", Inference

    def prepare(self):
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        w = self.workload
        classes = w.output == "softmax"
        estimator = (MLPClassifier if classes else MLPRegressor)(
            hidden_layer_sizes=w.layer_sizes[1:-1], activation=w.activation, max_iter=1
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(self.X[:20], np.arange(20) % 10)
        estimator.coefs_ = [W for W, _ in self.parameters]
        estimator.intercepts_ = [b for _, b in self.parameters]
        self.predict = estimator.predict_proba if classes else estimator.predict

    def run(self, seed):
        return self.predict(self.X)


class ScikitLearnPerceptron(Peer):
    name, needs, kind = "scikit-learn", "sklearn", ErrorCorrection

    def run(self, seed):
        from sklearn.linear_model import Perceptron

        unit = Perceptron(
            max_iter=self.workload.epochs, tol=None, random_state=seed, n_jobs=self.n_threads
        )
        unit.fit(self.X, self.y)
        return unit.coef_.T, unit.intercept_


# NumPy by hand ------------------------------------------------------------------------------------


class NumPy(Peer):
    name, needs, dtypes = "NumPy", "numpy", ("float32", "float64")
    only = ONE_BY_ONE

    def run(self, seed):
        w = self.workload
        pairs = initial_parameters(w.layer_sizes, w.activation, seed, self.dtype)
        return _numpy_training.train(w, pairs, self.X, self.y, orders(len(self.X), w, seed))


class NumPyInference(Peer):
    name, needs, kind = "NumPy", "numpy", Inference

    def predict(self, x):
        return _numpy_training.predict(self.workload, self.parameters, x)

    def run(self, seed):  # by chunks, whose arrays stay in the cache
        return np.concatenate([self.predict(self.X[i : i + 1024]) for i in at_every(1024, self.X)])


def at_every(n, X):
    return range(0, len(X), n)


# Numba by hand ------------------------------------------------------------------------------------

# Compiled from text so that importing this file does not need Numba.
NUMBA_TRAINING = """
import math
import numpy as np
from numba import njit

f = np.float32

@njit(fastmath=True)
def forward_loops(a, W, b, o):
    for i in range(o.shape[0]):
        for j in range(o.shape[1]):
            o[i, j] = b[j]
        for k in range(W.shape[0]):
            x = a[i, k]
            for j in range(o.shape[1]):
                o[i, j] += x * W[k, j]

@njit(fastmath=True)
def gradient_loops(a, d, o):
    o[:] = f(0)
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(d.shape[1]):
                o[k, j] += x * d[i, j]

@njit(fastmath=True)
def backward_loops(d, W, o):
    for i in range(o.shape[0]):
        for k in range(o.shape[1]):
            s = f(0)
            for j in range(d.shape[1]):
                s += d[i, j] * W[k, j]
            o[i, k] = s

@njit(fastmath=True)
def forward_blas(a, W, b, o):
    np.dot(a, W, o)
    for i in range(o.shape[0]):
        for j in range(o.shape[1]):
            o[i, j] += b[j]

@njit(fastmath=True)
def gradient_blas(a, d, o):
    np.dot(a.T, d, o)

@njit(fastmath=True)
def backward_blas(d, W, o):
    np.dot(d, W.T, o)

@njit(fastmath=True)
def activate(name, z):
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            if name == 0:
                z[i, j] = max(z[i, j], f(0))
            elif name == 1:
                e = np.exp(f(-2) * z[i, j])
                z[i, j] = (f(1) - e) / (f(1) + e)
            else:
                z[i, j] = f(1) / (f(1) + np.exp(-z[i, j]))

@njit(fastmath=True)
def through_activation(name, h, d):
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            if name == 0:
                d[i, j] = d[i, j] if h[i, j] > 0 else f(0)
            elif name == 1:
                d[i, j] *= f(1) - h[i, j] * h[i, j]
            else:
                d[i, j] *= h[i, j] * (f(1) - h[i, j])

@njit(fastmath=True)
def loss_gradient(output, z, labels, targets, d):
    n = z.shape[0]
    scale = f(1) / f(n)
    for i in range(n):
        if output == 0:
            top = z[i, 0]
            for j in range(z.shape[1]):
                top = max(top, z[i, j])
            total = f(0)
            for j in range(z.shape[1]):
                d[i, j] = np.exp(z[i, j] - top)
                total += d[i, j]
            for j in range(z.shape[1]):
                d[i, j] *= scale / total
            d[i, labels[i]] -= scale
        elif output == 1:
            d[i, 0] = (f(1) / (f(1) + np.exp(-z[i, 0])) - targets[i]) * scale
        else:
            d[i, 0] = (z[i, 0] - targets[i]) * scale

@njit(fastmath=True)
def update(adam, p, g, m, v, rate, t):
    if adam:
        step = f(rate * math.sqrt(1 - 0.999 ** t) / (1 - 0.9 ** t))
        epsilon = f(1e-8 * math.sqrt(1 - 0.999 ** t))
        for i in range(p.size):
            m[i] += f(0.1) * (g[i] - m[i])
            v[i] += f(0.001) * (g[i] * g[i] - v[i])
            p[i] -= step * m[i] / (np.sqrt(v[i]) + epsilon)
    else:
        for i in range(p.size):
            m[i] = f(0.9) * m[i] + g[i]
            p[i] -= f(rate) * m[i]

def make(forward, gradient, backward):
    @njit(fastmath=True, nogil=True)
    def train(
        X, labels, targets, p, g, m, v, W, b, gW, gb, H, D, orders, batch, act, out, adam, rate
    ):
        L, n, t = len(W), X.shape[0], 0
        xb = np.empty((batch, X.shape[1]), np.float32)
        lb, tb = np.zeros(batch, np.int64), np.zeros(batch, np.float32)
        for e in range(orders.shape[0]):
            for s in range(0, n, batch):
                k = min(batch, n - s)
                for i in range(k):
                    r = orders[e, s + i]
                    xb[i] = X[r]
                    lb[i] = labels[r]
                    tb[i] = targets[r]
                forward(xb[:k], W[0], b[0], H[0][:k])
                for l in range(1, L):
                    activate(act, H[l - 1][:k])
                    forward(H[l - 1][:k], W[l], b[l], H[l][:k])
                loss_gradient(out, H[L - 1][:k], lb, tb, D[L - 1][:k])
                for l in range(L - 1, -1, -1):
                    d = D[l][:k]
                    gb[l][:] = f(0)
                    for i in range(k):
                        for j in range(d.shape[1]):
                            gb[l][j] += d[i, j]
                    if l > 0:
                        gradient(H[l - 1][:k], d, gW[l])
                        backward(d, W[l], D[l - 1][:k])
                        through_activation(act, H[l - 1][:k], D[l - 1][:k])
                    else:
                        gradient(xb[:k], d, gW[0])
                t += 1
                update(adam, p, g, m, v, rate, t)
    return train

loops = make(forward_loops, gradient_loops, backward_loops)
blas = make(forward_blas, gradient_blas, backward_blas)
"""


def compiled(source):
    names: dict = {}
    exec(compile(source, "numba by hand", "exec"), names)  # our own text above
    return names


class Numba(Peer):
    """One loop over everything in one compiled function; products as plain loops."""

    name, needs, one_thread_only = "Numba", "numba", True
    only = (*SMALL, "W2")
    products = "loops"

    def prepare(self):
        w = self.workload
        self.train = compiled(NUMBA_TRAINING)[self.products]
        nothing = np.zeros(len(self.X))
        labels = self.y.ndim == 1
        self.labels = self.y if labels else nothing.astype(np.int64)
        self.targets = nothing.astype(np.float32) if labels else self.y.ravel()
        self.codes = (
            ["relu", "tanh", "sigmoid"].index(w.activation),
            ["softmax", "sigmoid", "identity"].index(w.output),
            w.optimizer == "adam",
        )
        self.fit(0, self.X[: w.batch_size], np.arange(min(w.batch_size, len(self.X)))[None])

    def fit(self, seed, X, order):
        w = self.workload
        pairs = initial_parameters(w.layer_sizes, w.activation, seed)
        net = _numpy_training.FlatNet(w, pairs)
        self.train(
            *(X, self.labels, self.targets, net.p, net.g, net.m, net.v),
            *(tuple(net.W), tuple(net.b), tuple(net.gW), tuple(net.gb), tuple(net.H), tuple(net.D)),
            *(order, w.batch_size, *self.codes, w.learning_rate),
        )
        return list(zip(net.W, net.b, strict=True))

    def one(self, seed):
        return self.fit(seed, self.X, orders(len(self.X), self.workload, seed))

    def run(self, seed):
        return self.one(seed)


class NumbaBlas(Numba):
    name, only, one_thread_only = "Numba + BLAS", LARGE, False
    products = "blas"


class NumbaMany(Numba):
    """One model per thread: the compiled function holds no GIL."""

    name, only, one_thread_only = "Numba", ("W7",), False

    def run(self, seed):
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(self.one, range(self.workload.n_models)))


NUMBA_INFERENCE = """
import numpy as np
from numba import njit

f = np.float32

@njit(fastmath=True)
def layer(x, W, b, relu, tanh):
    o = b.copy()
    for k in range(W.shape[0]):
        for j in range(W.shape[1]):
            o[j] += x[k] * W[k, j]
    if relu:
        for j in range(o.size):
            o[j] = max(o[j], f(0))
    elif tanh:
        for j in range(o.size):
            o[j] = np.tanh(o[j])
    return o

@njit(fastmath=True)
def predict(x, Ws, bs, relu, softmax):
    h = x[0]
    for k in range(len(Ws)):
        hidden = k < len(Ws) - 1
        h = layer(h, Ws[k], bs[k], hidden and relu, hidden and not relu)
    if softmax:
        total, top = f(0), h.max()
        for j in range(h.size):
            h[j] = np.exp(h[j] - top)
            total += h[j]
        for j in range(h.size):
            h[j] /= total
    return h
"""


class NumbaInference(Peer):
    name, needs, kind, one_thread_only = "Numba", "numba", Inference, True
    only = ("W5lat", "W5tiny")

    def prepare(self):
        function = compiled(NUMBA_INFERENCE)["predict"]
        Ws, bs = zip(*self.parameters, strict=True)
        relu, softmax = self.workload.activation == "relu", self.workload.output == "softmax"
        self.predict = lambda x: function(x, Ws, bs, relu, softmax)
        self.predict(self.X[:1])


NUMBA_PERCEPTRON = """
import numpy as np
from numba import njit

@njit(fastmath=True)
def train(X, y, W, b, orders):
    n_units, n = W.shape
    for e in range(orders.shape[0]):
        for q in range(orders.shape[1]):
            i = orders[e, q]
            x = X[i]
            for c in range(n_units):
                s = b[c]
                for j in range(n):
                    s += W[c, j] * x[j]
                target = y[i] if n_units == 1 else (1 if y[i] == c else 0)
                error = target - (1 if s > 0 else 0)
                if error != 0:
                    step = np.float32(error)
                    b[c] += step
                    for j in range(n):
                        W[c, j] += step * x[j]
"""


class NumbaPerceptron(Peer):
    name, needs, kind, one_thread_only = "Numba", "numba", ErrorCorrection, True

    def prepare(self):
        self.train = compiled(NUMBA_PERCEPTRON)["train"]
        self.go(np.zeros((1, 1), np.int64))

    def go(self, order):
        k, n_features = self.workload.n_classes, self.X.shape[1]
        W = np.zeros((k if k > 2 else 1, n_features), np.float32)
        b = np.zeros(len(W), np.float32)
        self.train(self.X, self.y, W, b, order)
        return W.T, b

    def run(self, seed):
        rng, n = np.random.default_rng(seed), len(self.X)
        return self.go(np.stack([rng.permutation(n) for _ in range(self.workload.epochs)]))


# PyTorch ------------------------------------------------------------------------------------------


def torch_with(n_threads):
    import torch

    torch.set_num_threads(n_threads)
    return torch


def torch_net(torch, workload, parameters):
    layers = []
    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}
    for k, (W, b) in enumerate(parameters):
        linear = torch.nn.Linear(*W.shape, dtype=torch.from_numpy(W).dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(W.T.copy()))
            linear.bias.copy_(torch.from_numpy(b))
        layers.append(linear)
        if k < len(parameters) - 1:
            layers.append(activation[workload.activation]())
    return torch.nn.Sequential(*layers)


def torch_loss(torch, workload):
    F = torch.nn.functional
    if workload.output == "softmax":
        return F.cross_entropy
    if workload.output == "sigmoid":
        return F.binary_cross_entropy_with_logits
    return lambda z, y: 0.5 * F.mse_loss(z, y)


class PyTorch(Peer):
    """Eager, rows preloaded as tensors, the optimizer in its fused form."""

    name, needs, dtypes = "PyTorch", "torch", ("float32", "float64")
    only = ONE_BY_ONE

    def prepare(self):
        self.torch = torch = torch_with(self.n_threads)
        self.data = torch.from_numpy(self.X), torch.from_numpy(self.y)

    def run(self, seed):
        torch, w, n = self.torch, self.workload, len(self.X)
        torch.manual_seed(seed)
        pairs = initial_parameters(w.layer_sizes, w.activation, seed, self.dtype)
        net, loss = torch_net(torch, w, pairs), torch_loss(torch, w)
        if w.optimizer == "adam":
            optimizer = torch.optim.Adam(net.parameters(), lr=w.learning_rate, fused=True)
        else:
            optimizer = torch.optim.SGD(
                net.parameters(), lr=w.learning_rate, momentum=MOMENTUM, fused=True
            )
        X, y = self.data
        for _ in range(w.epochs):
            order = torch.randperm(n) if n > w.batch_size else torch.arange(n)
            for rows in order.split(w.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss(net(X[rows]), y[rows]).backward()
                optimizer.step()
        linear = [layer for layer in net if hasattr(layer, "weight")]
        return [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in linear]


class PyTorchCompiled(PyTorch):
    """Gradient and optimizer of a step in one compiled graph."""

    name, dtypes = "torch.compile", ("float32",)

    def prepare(self):
        super().prepare()
        torch, w = self.torch, self.workload
        importlib.import_module("torch._inductor.config").cpp_wrapper = True
        F = torch.nn.functional
        hidden = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[w.activation]
        loss = torch_loss(torch, w)
        n_layers = len(w.layer_sizes) - 1

        def objective(p, x, y):
            h = x
            for k in range(n_layers):
                h = F.linear(h, p[2 * k], p[2 * k + 1])
                h = hidden(h) if k < n_layers - 1 else h
            return loss(h, y)

        gradient = torch.func.grad(objective)

        def step(p, m, v, rate, X, y, rows):
            grads = gradient(p, X[rows], y[rows])
            for a, b, c, g in zip(p, m, v, grads, strict=True):
                if w.optimizer == "adam":
                    b.lerp_(g, 1 - BETA1)
                    c.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                    a.sub_(rate * b / (c.sqrt() + EPSILON))
                else:
                    b.mul_(MOMENTUM).add_(g)
                    a.sub_(b, alpha=w.learning_rate)

        self.step = torch.compile(step, fullgraph=True, dynamic=False)
        n = len(self.X)
        with torch.no_grad():
            for rows in {min(w.batch_size, n), n % w.batch_size or min(w.batch_size, n)}:
                self.step(*self.state(0), torch.ones(1), *self.data, torch.arange(rows))

    def state(self, seed):
        torch, w = self.torch, self.workload
        pairs = initial_parameters(w.layer_sizes, w.activation, seed)
        p = tuple(torch.from_numpy(a.T.copy()) for pair in pairs for a in pair)
        return p, tuple(map(torch.zeros_like, p)), tuple(map(torch.zeros_like, p))

    def run(self, seed):
        torch, w, n = self.torch, self.workload, len(self.X)
        torch.manual_seed(seed)
        state, rate, t = self.state(seed), torch.empty(1), 0
        with torch.no_grad():
            for _ in range(w.epochs):
                order = torch.randperm(n) if n > w.batch_size else torch.arange(n)
                for rows in order.split(w.batch_size):
                    t += 1
                    corrected = math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
                    self.step(*state, rate.fill_(w.learning_rate * corrected), *self.data, rows)
        flat = [a.numpy().T for a in state[0]]
        return list(zip(flat[::2], flat[1::2], strict=True))


class PyTorchInference(Peer):
    name, needs, kind = "PyTorch", "torch", Inference

    def prepare(self):
        self.torch = torch = torch_with(self.n_threads)
        self.net = torch_net(torch, self.workload, self.parameters)
        if self.workload.output == "softmax":
            self.net.append(torch.nn.Softmax(1))

    def predict(self, x):
        with self.torch.inference_mode():
            return self.net(self.torch.from_numpy(x)).numpy()

    def run(self, seed):
        return np.concatenate([self.predict(self.X[i : i + 1024]) for i in at_every(1024, self.X)])


# JAX ----------------------------------------------------------------------------------------------


class Jax(Peer):
    """The whole training in one jit: a scan over epochs and batches, compiled ahead of time."""

    name, needs, dtypes = "JAX scan", "jax", ("float32", "float64")

    def prepare(self):
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", self.dtype == "float64")
        self.jax, self.jnp = jax, jnp
        w, (n, _) = self.workload, self.X.shape
        step = self.make_step()
        full, size = n // w.batch_size, w.batch_size

        def epoch(state, X, y, order):
            batches = order[: full * size].reshape(full, size)
            state, _ = jax.lax.scan(lambda s, rows: (step(s, X, y, rows), None), state, batches)
            return step(state, X, y, order[full * size :]) if n % size else state

        def train(p, orders, X, y):
            zero = jax.tree_util.tree_map(jnp.zeros_like, p)
            state = (p, zero, zero, jnp.zeros((), X.dtype))
            state, _ = jax.lax.scan(lambda s, o: (epoch(s, X, y, o), None), state, orders)
            return state[0]

        if w.n_models > 1:
            train = jax.vmap(train, in_axes=(0, 0, None, None))
        self.data = jnp.asarray(self.X), jnp.asarray(self.y)
        self.train = jax.jit(train).lower(*self.inputs(0), *self.data).compile()

    def make_step(self):
        jax, jnp, w = self.jax, self.jnp, self.workload
        hidden = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[w.activation]
        tree_map = jax.tree_util.tree_map

        def objective(p, x, y):
            for k, (W, b) in enumerate(p):
                x = x @ W + b
                x = hidden(x) if k < len(p) - 1 else x
            if w.output == "softmax":
                return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))
            if w.output == "sigmoid":
                return jnp.mean(jnp.logaddexp(0.0, x) - y * x)
            return 0.5 * jnp.mean((x - y) ** 2)

        def step(state, X, y, rows):
            p, m, v, t = state
            g, t = jax.grad(objective)(p, X[rows], y[rows]), t + 1
            if w.optimizer == "momentum":
                m = tree_map(lambda m, g: MOMENTUM * m + g, m, g)
                return tree_map(lambda p, m: p - w.learning_rate * m, p, m), m, v, t
            m = tree_map(lambda m, g: m + (1 - BETA1) * (g - m), m, g)
            v = tree_map(lambda v, g: v + (1 - BETA2) * (g * g - v), v, g)
            correction = jnp.sqrt(1 - BETA2**t)
            rate, epsilon = w.learning_rate * correction / (1 - BETA1**t), EPSILON * correction
            p = tree_map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + epsilon), p, m, v)
            return p, m, v, t

        return step

    def inputs(self, seed):
        w, n = self.workload, len(self.X)
        seeds = range(w.n_models) if w.n_models > 1 else [seed]
        nets = [initial_parameters(w.layer_sizes, w.activation, s, self.dtype) for s in seeds]
        rows = np.stack([orders(n, w, s) for s in seeds]).astype(np.int32)
        if w.n_models == 1:
            return [tuple(map(self.jnp.asarray, pair)) for pair in nets[0]], rows[0]
        layers = zip(*nets, strict=True)
        return [tuple(np.stack([p[i] for p in pairs]) for i in (0, 1)) for pairs in layers], rows

    def run(self, seed):
        p = self.jax.block_until_ready(self.train(*self.inputs(seed), *self.data))
        p = [(np.asarray(W), np.asarray(b)) for W, b in p]
        if self.workload.n_models == 1:
            return p
        return [[(W[i], b[i]) for W, b in p] for i in range(self.workload.n_models)]


class JaxInference(Peer):
    name, needs, kind = "JAX", "jax", Inference
    only = ("W5thr", "W5thrb")

    def prepare(self):
        import jax

        jax.config.update("jax_platforms", "cpu")
        parameters = [tuple(map(jax.numpy.asarray, pair)) for pair in self.parameters]

        @jax.jit
        def forward(x):
            for k, (W, b) in enumerate(parameters):
                x = x @ W + b
                x = jax.nn.relu(x) if k < len(parameters) - 1 else x
            return jax.nn.softmax(x)

        self.predict = lambda x: np.asarray(forward(x))
        self.predict(self.X)

    def run(self, seed):
        return self.predict(self.X)


# ONNX Runtime -------------------------------------------------------------------------------------


class OnnxRuntime(Peer):
    name, needs, kind = "ONNX Runtime", "onnxruntime", Inference

    def prepare(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.n_threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            onnx_model(self.parameters, self.workload), options, ["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        self.predict = lambda x: session.run(names, {"x": x})[0]

    def run(self, seed):  # by chunks: faster than all at once
        return np.concatenate([self.predict(self.X[i : i + 1024]) for i in at_every(1024, self.X)])


def onnx_model(parameters, workload) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, at = [], [], "x"
    for k, (W, b) in enumerate(parameters):
        constants += [numpy_helper.from_array(W, f"W{k}"), numpy_helper.from_array(b, f"b{k}")]
        nodes.append(helper.make_node("Gemm", [at, f"W{k}", f"b{k}"], [f"z{k}"]))
        at = f"z{k}"
        if k < len(parameters) - 1:
            nodes.append(helper.make_node(workload.activation.capitalize(), [at], [f"h{k}"]))
            at = f"h{k}"
    if workload.output == "softmax":
        nodes.append(helper.make_node("Softmax", [at], ["y"], axis=1))
        at = "y"
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", workload.layer_sizes[0]), (at, workload.layer_sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", tensors[:1], tensors[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model.SerializeToString()
