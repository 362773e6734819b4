"""Trainings on an NVIDIA GPU: fastnn's CUDA backend beside PyTorch eager, compiled, and as graphs.

pytest benches/bench_cuda.py
pytest benches/bench_cuda.py -k "W1 and graph"

Needs a GPU, fastnn with the extra `cuda`, and a PyTorch that was built with CUDA. The rows lie on
the GPU before the clock starts, for everybody; each run ends with the parameters on the host and
is checked like those of every other peer. Compilation is left out: a first run warms everything up.
"""

import os

import machine
import numpy as np
import peers
import pytest
import workloads
from checks import check, score
from workloads import WORKLOADS, initial_parameters

from fastnn._numpy_training import BETA1, BETA2, EPSILON, MOMENTUM

torch = pytest.importorskip("torch")

DEVICE = os.environ.get("FASTNN_BENCH_TORCH_DEVICE", "cuda")
"""Another one than "cuda" only tries the programs out."""

if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("PyTorch sees no GPU, or was built without CUDA", allow_module_level=True)


pytestmark = pytest.mark.filterwarnings("default")  # compilers have much to say


class Fastnn:
    """Through the estimator's door: `Trainer.fit` with backend="cuda"."""

    def __init__(self, workload):
        import fastnn

        fastnn.MLP([1, 1], backend="cuda")  # raises where there is no GPU
        self.workload = workload
        X, y = workloads.load(workload.data)
        self.X, self.y = torch.as_tensor(X, device=DEVICE), torch.as_tensor(y, device=DEVICE)

    def run(self, seed):
        import fastnn

        w = self.workload
        model = fastnn.MLP(
            w.layer_sizes, activation=w.activation, output=w.output, seed=seed, backend="cuda"
        )
        peers.set_parameters(model, initial_parameters(w.layer_sizes, w.activation, seed))
        adam = w.optimizer == "adam"
        settings = {} if adam else {"momentum": MOMENTUM}
        optimizer = (fastnn.Adam if adam else fastnn.SGD)(w.learning_rate, **settings)
        trainer = fastnn.Trainer(model, optimizer=optimizer, batch_size=w.batch_size, seed=seed)
        trainer.fit(self.X, self.y, epochs=w.epochs)
        return peers.parameters_of(model)


class Eager:
    """The loop that the tutorials write, with the fused optimizer."""

    capturable = False

    def __init__(self, workload):
        self.workload = workload
        X, y = workloads.load(workload.data)
        self.X, self.y = torch.as_tensor(X, device=DEVICE), torch.as_tensor(y, device=DEVICE)

    def begin(self, seed):
        w = self.workload
        layers, activation = [], {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        for k, (W, b) in enumerate(initial_parameters(w.layer_sizes, w.activation, seed)):
            if k:
                layers.append(getattr(torch.nn, activation[w.activation])())
            layer = torch.nn.Linear(*W.shape, device=DEVICE)
            with torch.no_grad():
                layer.weight.copy_(torch.as_tensor(np.ascontiguousarray(W.T)))
                layer.bias.copy_(torch.as_tensor(b))
            layers.append(layer)
        self.net = torch.nn.Sequential(*layers)
        parameters = self.net.parameters()
        if w.optimizer == "adam":
            self.optimizer = torch.optim.Adam(
                parameters, w.learning_rate, (BETA1, BETA2), EPSILON,
                fused=True, capturable=self.capturable,
            )  # fmt: skip
        else:
            self.optimizer = torch.optim.SGD(parameters, w.learning_rate, MOMENTUM, fused=True)
        self.loss = {
            "softmax": torch.nn.functional.cross_entropy,
            "sigmoid": torch.nn.functional.binary_cross_entropy_with_logits,
            "identity": lambda z, t: 0.5 * ((z - t) ** 2).sum(dim=1).mean(),
        }[w.output]

    def step(self, x, t):
        self.optimizer.zero_grad(set_to_none=not self.capturable)
        self.loss(self.net(x), t).backward()
        self.optimizer.step()

    def run(self, seed):
        self.begin(seed)
        w, n = self.workload, len(self.X)
        generator = torch.Generator(DEVICE).manual_seed(seed)
        for _ in range(w.epochs):
            order = torch.randperm(n, device=DEVICE, generator=generator)
            for at in range(0, n, w.batch_size):
                rows = order[at : at + w.batch_size]
                self.step(self.X[rows], self.y[rows])
        return self.parameters()

    def parameters(self):
        linear = [layer for layer in self.net if isinstance(layer, torch.nn.Linear)]
        return [
            (layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy())
            for layer in linear
        ]


class Compiled(Eager):
    """The net and its loss through torch.compile; kept between runs, so that it compiles once."""

    def begin(self, seed):
        super().begin(seed)
        if not hasattr(self, "kept"):
            self.kept = self.net
            loss = self.loss
            self.compiled = torch.compile(lambda x, t: loss(self.kept(x), t))
        else:
            self.kept.load_state_dict(self.net.state_dict())
            self.net = self.kept
            group = self.optimizer.param_groups[0]
            settings = {k: v for k, v in group.items() if k != "params"}
            self.optimizer = type(self.optimizer)(self.net.parameters(), **settings)

    def step(self, x, t):
        self.optimizer.zero_grad(set_to_none=True)
        self.compiled(x, t).backward()
        self.optimizer.step()


class Graph(Eager):
    """A whole step recorded as a CUDA graph and replayed; a short last batch goes eagerly."""

    capturable = True

    def run(self, seed):
        self.begin(seed)
        w, n = self.workload, len(self.X)
        x, t = self.X[: w.batch_size].clone(), self.y[: w.batch_size].clone()
        start = {k: v.clone() for k, v in self.net.state_dict().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # what is allocated at first use must not be recorded
                self.step(x, t)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(x, t)
        self.net.load_state_dict(start)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        generator = torch.Generator(DEVICE).manual_seed(seed)
        for _ in range(w.epochs):
            order = torch.randperm(n, device=DEVICE, generator=generator)
            for at in range(0, n, w.batch_size):
                rows = order[at : at + w.batch_size]
                if len(rows) == w.batch_size:
                    torch.index_select(self.X, 0, rows, out=x)
                    torch.index_select(self.y, 0, rows, out=t)
                    graph.replay()
                else:
                    self.step(self.X[rows], self.y[rows])
        return self.parameters()


WAYS = {"fastnn": Fastnn, "torch-eager": Eager, "torch-compiled": Compiled, "torch-graph": Graph}


def gpu():
    """The card in words."""
    if DEVICE != "cuda":
        return DEVICE
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["W1", "W1b", "W1c", "W2", "W3", "W4a"])
def test_training(benchmark, record, name, way):
    workload = WORKLOADS[name]
    one = WAYS[way](workload)
    result = benchmark.pedantic(one.run, (0,), rounds=5, warmup_rounds=1)
    loss = score(workload, result)
    check(workload, loss, 0)
    record(loss=round(loss, 5), gpu=gpu(), host=machine.cpu_model())
