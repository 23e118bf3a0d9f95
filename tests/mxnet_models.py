"""Small MXNet models of every kind, made once by MXNet itself and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports MXNet.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["path"]

SEED = 7


def path(name: str) -> Path:
    """The folder of a made model; do not write to it, others use it too.

    Args:
        name: `cnn`, `lstm`, `transformer`, `two_inputs`, `module`, `unknown`.
    """
    from made_models import folder_of, model  # not for the script

    return model(folder_of(Path(__file__), "mxnet"), name)


def make(folder: Path) -> None:
    """Write every model into a folder of its own, as Gluon exports it, or as a Module saves its checkpoints."""
    import mxnet as mx
    from mxnet import gluon, nd

    mx.random.seed(SEED)

    class Normalised(gluon.HybridBlock):
        def __init__(self, mode):
            super().__init__()
            self.mode = mode

        def hybrid_forward(self, F, x):  # noqa: N803 - Gluon's own name
            return F.L2Normalization(x, mode=self.mode)

    class Transformer(gluon.HybridBlock):
        def __init__(self, size=16):
            super().__init__()
            with self.name_scope():
                self.words = gluon.nn.Embedding(50, size)
                self.query, self.key, self.value, self.up, self.down = (
                    gluon.nn.Dense(units, flatten=False) for units in (size, size, size, 2 * size, size)
                )
                self.first, self.second = gluon.nn.LayerNorm(), gluon.nn.LayerNorm()
                self.head = gluon.nn.Dense(3, flatten=False)

        def hybrid_forward(self, F, ids):  # noqa: N803
            x = self.words(ids)
            scores = F.batch_dot(self.query(x), self.key(x), transpose_b=True) / 4
            x = self.first(x + F.batch_dot(F.softmax(scores, axis=-1), self.value(x)))
            x = self.second(x + self.down(F.LeakyReLU(self.up(x), act_type="gelu")))
            return self.head(F.mean(x, axis=1))

    class TwoInputs(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            with self.name_scope():
                self.one, self.other = gluon.nn.Dense(4), gluon.nn.Dense(4)

        def hybrid_forward(self, F, x, y):  # noqa: N803
            return self.one(x) * self.other(y), F.concat(x, y, dim=1)

    def export(name, net, *inputs):
        net.initialize(mx.init.Xavier(), force_reinit=False)
        net.hybridize()
        net(*inputs)
        (folder / name).mkdir()
        net.export(str(folder / name / name))

    cnn = gluon.nn.HybridSequential()
    cnn.add(gluon.nn.Conv2D(8, 3, strides=2, padding=1), gluon.nn.BatchNorm(), gluon.nn.PReLU(), Normalised("spatial"))
    cnn.add(gluon.nn.Conv2D(16, 3, groups=4), Normalised("channel"), gluon.nn.Conv2DTranspose(8, 2, strides=2))
    cnn.add(gluon.nn.PReLU(), gluon.nn.GlobalAvgPool2D(), gluon.nn.Flatten(), gluon.nn.Dense(5), gluon.nn.PReLU())
    cnn.add(Normalised("instance"))
    export("cnn", cnn, nd.random.uniform(shape=(2, 3, 32, 32)))
    lstm = gluon.nn.HybridSequential()
    lstm.add(gluon.rnn.LSTM(8, 1, layout="NTC", bidirectional=True, input_size=6), gluon.nn.Dense(3))
    export("lstm", lstm, nd.random.uniform(shape=(2, 7, 6)))
    export("transformer", Transformer(), nd.array([[1, 4, 9, 16, 25], [2, 3, 5, 7, 11]]))
    export("two_inputs", TwoInputs(), nd.random.uniform(shape=(2, 4)), nd.random.uniform(shape=(2, 6)))

    data = mx.sym.Variable("data")
    hidden = mx.sym.Activation(mx.sym.FullyConnected(data, num_hidden=8, name="hidden"), act_type="relu")
    symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(hidden, num_hidden=3, name="scores"), name="softmax")
    module = mx.mod.Module(symbol)
    module.bind([("data", (2, 4))], [("softmax_label", (2,))])
    module.init_params(mx.init.Xavier())
    (folder / "module").mkdir()
    for epoch in (1, 12):
        module.save_checkpoint(str(folder / "module" / "net"), epoch)

    unknown = mx.sym.arcsinh(mx.sym.FullyConnected(mx.sym.Variable("x"), num_hidden=2, no_bias=True, name="fc"))
    (folder / "unknown").mkdir()
    unknown.save(str(folder / "unknown" / "net-symbol.json"))
    nd.save(str(folder / "unknown" / "net-0000.params"), {"arg:fc_weight": nd.ones((2, 4))})


if __name__ == "__main__":
    import numpy

    for kind in (bool, object, int, float):
        setattr(numpy, kind.__name__, kind)
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    make(target)
