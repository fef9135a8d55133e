"""Ours against Keras 3 on its JAX backend: the tutorial's network, on real digits, in float64.

Dropout is 0 here, since the two draw different masks; `test_model` holds ours against Flax's, statistic by statistic.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras.src.layers.normalization import batch_normalization

from mnist_flax.compiled import train_steps
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.data.batches import epoch_batches
from mnist_flax.model import MLP
from mnist_flax.optimizer import make_optimizer
from mnist_flax.program import Program
from mnist_flax.state import TrainState, as_arrays, init_state
from mnist_flax.steps import Batch, data_loss, take, train_step

L2, LABEL_SMOOTHING, EXAMPLES, BATCH = 1e-3, 0.1, 1000, 64  # 15 batches of 64, and one of 40
STEPS_PER_EPOCH = -(-EXAMPLES // BATCH)
PROGRAM = Program(Config().static(), (28, 28, 1), num_classes=10, steps_per_epoch=STEPS_PER_EPOCH)
MODEL = PROGRAM.model


def make_keras(l2: float = L2) -> keras.Model:
    """The tutorial, without its dropout; layers named as ours."""
    layers = [
        keras.Input((784,)),
        keras.layers.Dense(512, activation="relu", name="dense_1"),
        keras.layers.Dense(512, kernel_regularizer=keras.regularizers.l2(l2), name="dense_2"),
        keras.layers.BatchNormalization(name="batch_norm_2"),
        keras.layers.Activation("relu"),
        keras.layers.Dense(10, name="dense_3"),
    ]
    return keras.Sequential(layers)


NAMES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def from_keras(variables: list, values: list) -> dict:
    """Keras's list of values as a tree like ours."""
    tree: dict = {}
    for variable, value in zip(variables, values, strict=True):
        layer, leaf = variable.path.split("/")[-2:]
        tree.setdefault(layer, {})[NAMES.get(leaf, leaf)] = np.asarray(value)
    return tree


def to_keras(variables: list, tree: dict) -> list:
    """Our tree as Keras's list of values."""
    back = {variable.path: variable.path.split("/")[-2:] for variable in variables}
    return [jnp.asarray(tree[layer][NAMES.get(leaf, leaf)]) for layer, leaf in back.values()]


def keras_loss(model: keras.Model, trainable: list, fixed: list, batch: Batch) -> tuple:
    """Keras's own loss of a batch, L2 included, and its next BatchNorm statistics."""
    real = int(np.sum(batch.mask))
    images = jnp.asarray(batch.images[:real], float).reshape(real, -1) / 255
    logits, fixed, penalties = model.stateless_call(trainable, fixed, images, training=True, return_losses=True)
    targets = jax.nn.one_hot(batch.labels[:real], 10, dtype=float)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)(targets, logits)
    return loss + sum(penalties), fixed


@pytest.fixture(autouse=True)
def keras_promotes_ranks() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keras in float64 throughout; by itself its BatchNorm computes in float32."""
    monkeypatch.setattr(batch_normalization.backend, "result_type", lambda *dtypes: max(dtypes))
    with jax.enable_x64(True):
        for dtype in ("float64", "float32"):
            keras.config.set_floatx(dtype)
            keras.config.set_dtype_policy(dtype)
            if dtype == "float64":
                yield


@pytest.fixture(scope="module")
def digits(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = dataset.read(f"train[:{EXAMPLES}]")
    return np.asarray(images), np.asarray(labels)


def batches(digits: tuple, epochs: int) -> list[Batch]:
    order = np.concatenate([epoch_batches(EXAMPLES, BATCH, seed=0, epoch=e) for e in range(epochs)])
    return [Batch(*(np.asarray(leaf) for leaf in take(digits, row))) for row in order]


def hparams64() -> Hyperparams:
    h = Hyperparams(l2=L2, dropout_rate=0.0, label_smoothing=LABEL_SMOOTHING)
    return jax.tree.map(lambda x: np.asarray(x, np.float64 if isinstance(x, float) else np.uint32), h)


def assert_close(ours: dict, theirs: dict, rtol: float = 1e-11) -> None:
    """Each leaf relative to its own largest value, but for the bias in front of BatchNorm.

    That one's gradient is exactly zero; what either program has there is rounding, small against all gradients.
    """
    largest = max(np.abs(want).max() for leaves in theirs.values() for want in leaves.values())
    for layer, leaves in theirs.items():
        for leaf, want in leaves.items():
            got = np.asarray(ours[layer][leaf])
            scale = largest if (layer, leaf) == ("dense_2", "bias") else np.abs(want).max()
            assert np.abs(got - want).max() <= rtol * scale, f"{layer}/{leaf}"


def test_logits_losses_gradients_and_statistics_along_a_trajectory(float64: None, digits: tuple) -> None:
    theirs, h = make_keras(), hparams64()
    loss_and_grads = jax.jit(
        lambda trainable, fixed, images, labels: jax.value_and_grad(
            lambda t: keras_loss(theirs, t, fixed, Batch(images, labels, np.ones(len(labels)))), has_aux=True
        )(trainable)
    )
    ours = jax.jit(lambda p, s, b: jax.value_and_grad(data_loss, has_aux=True)(p, s, h, b, 0, program=PROGRAM))
    step = jax.jit(lambda s, b: train_step(s, h, b, program=PROGRAM))
    our_logits = jax.jit(MODEL.apply)
    their_logits = jax.jit(lambda trainable, fixed, x: theirs.stateless_call(trainable, fixed, x, training=False)[0])
    state = init64()
    penalty_gradient = optax.add_decayed_weights(2 * L2, mask=lambda p: masks_of(p))
    some = batches(digits, 4)[:50]
    assert [int(b.mask.sum()) for b in some].count(40) == 3  # the short last batch is among them
    for batch in some:
        real = int(batch.mask.sum())
        trainable = to_keras(theirs.trainable_variables, state.params)
        fixed = to_keras(theirs.non_trainable_variables, state.batch_stats)
        (want_loss, want_stats), want_grads = loss_and_grads(trainable, fixed, batch.images[:real], batch.labels[:real])
        (_, (_, stats)), grads = ours(state.params, state.batch_stats, batch)
        grads, _ = penalty_gradient.update(grads, penalty_gradient.init(state.params), state.params)
        logits = our_logits({"params": state.params, "batch_stats": state.batch_stats}, batch.images)
        flat = jnp.asarray(batch.images, float).reshape(BATCH, -1) / 255
        want_logits = their_logits(trainable, fixed, flat)
        state, metrics = step(state, batch)

        assert logits.dtype == want_logits.dtype == np.float64
        np.testing.assert_allclose(logits, want_logits, rtol=1e-11, atol=1e-11)
        our_loss = (metrics.cross_entropy + metrics.l2_penalty) / real
        np.testing.assert_allclose(our_loss, want_loss, rtol=1e-11)
        assert_close(grads, from_keras(theirs.trainable_variables, want_grads))
        assert_close(stats, from_keras(theirs.non_trainable_variables, want_stats))


def masks_of(params: dict) -> dict:
    """Which kernels Keras regularises, written out by hand."""
    return {layer: {leaf: [layer, leaf] == ["dense_2", "kernel"] for leaf in tree} for layer, tree in params.items()}


def init64() -> TrainState:
    init = init_state(hparams64(), program=PROGRAM)
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, init)


def test_adam_makes_the_update_of_keras(float64: None) -> None:
    """Given the same gradients. Keras does not bias-correct epsilon (Kingma & Ba, section 2): ours is scaled."""
    rng, b2, epsilon = np.random.default_rng(0), 0.999, 1e-7
    start = rng.normal(size=(7, 5))
    variable = keras.Variable(start, dtype="float64")
    theirs = keras.optimizers.Adam(1e-3)
    theirs.build([variable])
    params, opt_state, h = {"dense_1": {"kernel": jnp.asarray(start)}}, None, hparams64()
    for t in range(1, 21):
        gradient = rng.normal(size=(7, 5)) * 10.0 ** rng.integers(-8, 2, size=(7, 5))
        static = Config(l2_layers=(), adam_epsilon=epsilon / np.sqrt(1 - b2**t)).static()
        tx = make_optimizer(h, static, MODEL, steps_per_epoch=20)
        opt_state = tx.init(params) if opt_state is None else opt_state
        updates, opt_state = tx.update({"dense_1": {"kernel": jnp.asarray(gradient)}}, opt_state, params)
        before = np.asarray(variable.value)
        theirs.apply([jnp.asarray(gradient)], [variable])
        want = np.asarray(variable.value) - before
        np.testing.assert_allclose(updates["dense_1"]["kernel"], want, rtol=0, atol=1e-9)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["dense_1"]["kernel"], np.asarray(variable.value), atol=1e-9)


def test_sgd_ends_at_the_weights_of_keras(float64: None, digits: tuple) -> None:
    """50 steps, so that every difference in a gradient adds up; Adam would hide its size."""
    theirs, h, rate = make_keras(), hparams64(), 0.1
    state = init64()
    params, stats = state.params, state.batch_stats
    trainable = to_keras(theirs.trainable_variables, params)
    fixed = to_keras(theirs.non_trainable_variables, stats)

    @jax.jit
    def their_step(trainable: list, fixed: list, images: jax.Array, labels: jax.Array) -> tuple:
        batch = Batch(images, labels, np.ones(len(labels)))
        grads, fixed = jax.grad(lambda t: keras_loss(theirs, t, fixed, batch), has_aux=True)(trainable)
        return [t - rate * g for t, g in zip(trainable, grads, strict=True)], fixed

    tx = optax.chain(optax.add_decayed_weights(2 * L2, mask=masks_of), optax.sgd(rate))

    @jax.jit
    def our_step(params: dict, stats: dict, batch: Batch) -> tuple:
        grads, (_, stats) = jax.grad(data_loss, has_aux=True)(params, stats, h, batch, 0, program=PROGRAM)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), stats

    for batch in batches(digits, 4)[:50]:
        real = int(batch.mask.sum())
        trainable, fixed = their_step(trainable, fixed, batch.images[:real], batch.labels[:real])
        params, stats = our_step(params, stats, batch)
    assert_close(params, from_keras(theirs.trainable_variables, trainable))
    assert_close(stats, from_keras(theirs.non_trainable_variables, fixed))


def test_default_loss_curves_agree_in_float32(digits: tuple) -> None:
    """50 steps of Adam as Keras's own `train_on_batch` makes them, from the same weights on the same batches."""
    h = as_arrays(Hyperparams(dropout_rate=0.0, label_smoothing=LABEL_SMOOTHING))
    state = init_state(h, program=PROGRAM)
    theirs = make_keras()
    for variable, value in zip(theirs.variables, to_keras(theirs.variables, merged(state)), strict=True):
        variable.assign(np.array(value))  # a copy: `train_steps` takes our arrays over
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    theirs.compile(loss=loss, optimizer="adam")
    some = [batch for batch in batches(digits, 4) if batch.mask.all()][:50]  # full ones: Keras compiles one size
    want = []
    for batch in some:
        real = int(batch.mask.sum())
        flat = batch.images[:real].reshape(real, -1).astype("float32") / 255
        theirs.reset_metrics()
        want.append(float(theirs.train_on_batch(flat, keras.utils.to_categorical(batch.labels[:real], 10))))
    order = np.concatenate([epoch_batches(EXAMPLES, BATCH, seed=0, epoch=e) for e in range(4)])
    order = order[(order >= 0).all(axis=1)][:50]
    _, metrics = train_steps(state, h, digits, order, program=PROGRAM)
    ours = np.asarray((metrics.cross_entropy + metrics.l2_penalty) / metrics.examples)
    np.testing.assert_allclose(ours, want, rtol=1e-2)
    assert ours[-1] < 0.5 * ours[0]


def merged(state: TrainState) -> dict:
    """Parameters and statistics in one tree by layer."""
    return {layer: {**leaves, **state.batch_stats.get(layer, {})} for layer, leaves in state.params.items()}


def test_initial_weights_follow_the_law_of_keras() -> None:
    """Glorot-uniform kernels (the limit is sqrt(6 / (fan_in + fan_out))), zero biases."""
    model = MLP(widths=(512, 512), batch_norm_layers=(2,), num_classes=10)
    params = model.init(jax.random.key(3), jnp.zeros((1, 784)))["params"]
    for layer, leaves in params.items():
        if "kernel" in leaves:
            kernel = np.asarray(leaves["kernel"])
            limit = np.sqrt(6 / sum(kernel.shape))
            assert 0.99 * limit < np.abs(kernel).max() <= limit
            np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=2e-2)
            assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
            assert not np.asarray(leaves["bias"]).any(), layer
