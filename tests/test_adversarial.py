"""Virtual adversarial training: its direction, its loss, and that nothing but the pixels' values counts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Tiny
from test_drivers import wide

from mnist_flax import compiled, model, steps
from mnist_flax.config import Config
from mnist_flax.data import batches
from mnist_flax.model import MLP, gaussian
from mnist_flax.program import Program
from mnist_flax.steps import Batch, adversarial_direction, data_loss

IMAGES = (3, 2, 1)  # of the small networks


def images_of(count: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).uniform(size=(count, *IMAGES)), float)


def directions(f: Any, images: jax.Array, start: jax.Array, mask: Any, iterations: int = 1) -> np.ndarray:
    logits, pull = jax.vjp(f, images)
    for _ in range(iterations):
        start = adversarial_direction(pull, logits, start, jnp.asarray(mask))
    return np.asarray(start)


def test_many_iterations_find_the_top_eigenvector_of_the_exact_hessian() -> None:
    """JAX's own Hessian of the divergence, decomposed by numpy, is the oracle."""
    with jax.enable_x64(True):
        network = MLP((7, 5), (2,), 4)
        images = images_of(6)
        variables = network.init(jax.random.key(3), images)
        f = partial(network.apply, variables)  # running statistics: no image knows of another
        found = directions(f, images, gaussian(jax.random.key(0), images.shape), np.ones(6, bool), iterations=50)

        def divergence(change: jax.Array, image: jax.Array) -> jax.Array:
            p = jax.nn.log_softmax(f(image[None]))
            return jnp.sum(jnp.exp(p) * (p - jax.nn.log_softmax(f((image + change.reshape(IMAGES))[None]))))

        for image, direction in zip(images, found, strict=True):
            values, vectors = np.linalg.eigh(np.asarray(jax.hessian(divergence)(jnp.zeros(6), image)))
            assert values[-1] > 1.1 * values[-2]  # else 50 iterations need not tell them apart
            assert abs(vectors[:, -1] @ direction.ravel()) > 0.999
            np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=1e-12)


def test_one_iteration_is_that_of_numpy_also_through_batch_norm_and_with_padding() -> None:
    """By central differences of a network written in numpy, in which the statistics are those of the batch."""
    with jax.enable_x64(True):
        network, mask = MLP((7,), (1,), 4), np.array([True] * 5 + [False] * 2)
        rngs = {"dropout": jax.random.key(0)}
        images = images_of(7)
        variables = network.init(jax.random.key(3), images)
        start = np.asarray(gaussian(jax.random.key(0), images.shape))
        f = lambda x: network.apply(variables, x, mask=mask, train=True, rngs=rngs, mutable=["batch_stats"])[0]  # noqa: E731
        found = directions(f, images, jnp.asarray(start), mask)
    w = {
        name: {leaf: np.asarray(value) for leaf, value in layer.items()} for name, layer in variables["params"].items()
    }

    def logits(x: np.ndarray) -> np.ndarray:
        hidden = x @ w["dense_1"]["kernel"] + w["dense_1"]["bias"]
        hidden = (hidden - hidden[mask].mean(axis=0)) / np.sqrt(hidden[mask].var(axis=0) + 1e-3)
        hidden = np.maximum(hidden * w["batch_norm_1"]["scale"] + w["batch_norm_1"]["bias"], 0)
        return hidden @ w["dense_2"]["kernel"] + w["dense_2"]["bias"]

    x, tiny = np.asarray(images).reshape(7, 6), 1e-5
    steps = tiny * np.eye(7 * 6).reshape(-1, 7, 6)
    jacobian = np.stack([(logits(x + step) - logits(x - step)).ravel() / (2 * tiny) for step in steps], axis=1)
    p = np.exp(logits(x)) / np.exp(logits(x)).sum(axis=1, keepdims=True)
    d = start.reshape(7, 6) / np.linalg.norm(start.reshape(7, 6), axis=1, keepdims=True)
    v = (jacobian @ d.ravel()).reshape(7, 4)
    turned = p * (v - (p * v).sum(axis=1, keepdims=True)) * mask[:, None]
    product = (jacobian.T @ turned.ravel()).reshape(7, 6)
    for real in np.flatnonzero(mask):
        np.testing.assert_allclose(found[real].ravel(), product[real] / np.linalg.norm(product[real]), atol=1e-6)
    assert not found[~mask].any()


@pytest.mark.parametrize("sharpness", [1, 40])
def test_the_direction_is_exact_where_a_prediction_is_certain(sharpness: int) -> None:
    """In float32 the probabilities but one are as small as it can say; those of float64 are the oracle."""
    sharp, found = lambda v, x: sharpness * MLP((7,), (), 4).apply(v, x), []  # noqa: E731
    for x64 in (False, True):
        with jax.enable_x64(x64):
            images, variables = images_of(6), jax.tree.map(jnp.asarray, FIXED)
            found.append(directions(partial(sharp, variables), images, images - 0.5, np.ones(6, bool)).reshape(6, -1))
    assert found[0].dtype == np.float32
    assert ((found[0] * found[1]).sum(axis=1) > 0.999).all()


FIXED = jax.tree.map(np.asarray, MLP((7,), (), 4).init(jax.random.key(3), np.zeros((1, *IMAGES))))


def made(**settings: Any) -> Tiny:
    return Tiny(Config(widths=(16, 12), batch_norm_layers=(1, 2), batch_size=16, **settings))


def test_the_term_is_the_divergence_under_the_same_noise_and_the_scores_lack_it(small: batches.Split) -> None:
    plain, with_term = made(noise_at="hidden"), made(noise_at="hidden", virtual_adversarial=True)
    h = plain.hparams(noise=0.3, adversarial_radius=1.5, adversarial_weight=0.7)
    state, batch = plain.init(h), Batch(small.images[:16], small.labels[:16], jnp.arange(16) < 13)
    loss = partial(data_loss, state.params, state.batch_stats, h, batch, 5)
    value, (sums, stats) = loss(program=plain.program)
    more, (same_sums, same_stats) = loss(program=with_term.program)
    np.testing.assert_array_equal(sums, same_sums)
    jax.tree.map(np.testing.assert_array_equal, stats, same_stats)

    seen: list[Any] = []
    apply = MLP.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLP, "apply", lambda *args, **kwargs: seen.append((args, kwargs)) or apply(*args, **kwargs))
        loss(program=with_term.program)
    (first, kept), (second, kept_too) = seen
    change = np.asarray(second[2] - jax.lax.stop_gradient(batch.images.astype(float) / 255))
    lengths = np.linalg.norm(change.reshape(16, -1), axis=1)
    np.testing.assert_allclose(lengths, 1.5 * np.asarray(batch.mask), rtol=1e-5)
    assert str(kept["rngs"]) == str(kept_too["rngs"])
    p, q = (np.asarray(apply(first[0], first[1], x, **kept)[0], np.float64) for x in (batch.images, second[2]))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    want = (np.exp(p) * (p - q)).sum(axis=1)[np.asarray(batch.mask)].mean()
    assert want > 1e-4
    np.testing.assert_allclose(float(more - value), 0.7 * want, rtol=1e-3)


def test_bfloat16_products_have_a_direction_too(small: batches.Split) -> None:
    """Their gradient is written by hand, and the direction is linear in it: it must be close to that of float32."""
    found = []
    for precision in ("float32", "bfloat16"):
        network = MLP((16,), (), 10, precision)
        images = small.images[:8].astype(float) / 255
        variables = network.init(jax.random.key(0), images)
        found.append(directions(partial(network.apply, variables), images, images - 0.5, np.ones(8, bool)))
    cosines = (found[0] * found[1]).reshape(8, -1).sum(axis=1)
    assert (cosines > 0.95).all() and (found[0] != found[1]).any()


@pytest.mark.parametrize("change", [{"adversarial_weight": 3.0}, {"adversarial_radius": 0.5}, {"noise": 0.1}])
def test_strengths_are_arrays_and_matter(change: dict, small: batches.Split) -> None:
    tiny = made(noise_at="both", virtual_adversarial=True)
    order = np.arange(64, dtype=np.int32).reshape(4, 16)
    kernels = []
    for overrides in ({"noise": 0.3}, {"noise": 0.3} | change):
        h = tiny.hparams(**overrides)
        state, _ = compiled.train_steps(jax.jit(tiny.init)(h), h, tuple(small), order, program=tiny.program)
        kernels.append(np.asarray(state.params["dense_1"]["kernel"]))
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


def test_the_network_is_permutation_invariant(small: batches.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels in another order, with the first kernel's rows and the random numbers in that order, train the same."""
    order = np.random.default_rng(0).permutation(784)
    settings = {"noise_at": "both", "virtual_adversarial": True, "average_weights": True}
    losses = []
    for permuted in (False, True):
        with jax.enable_x64(True):
            program = Program(Config(widths=(16, 12), l2_layers=(1,), **settings).static(), (28, 28, 1), 10, 4)
            tiny = made(**settings)
            h = wide(tiny.hparams(noise=0.3, l2=0.01))
            state: Any = wide(compiled.init_run(h, program=program))
            images, labels = np.asarray(small.images), np.asarray(small.labels)
            if permuted:
                state.params["dense_1"]["kernel"] = state.params["dense_1"]["kernel"][order]
                state = state.replace(opt_state=program.optimizer(h).init(state.params))
                images = images.reshape(-1, 784)[:, order].reshape(images.shape)

                def moved(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
                    numbers = gaussian(key, shape)
                    pixels = numbers.size == 16 * 784
                    return numbers.reshape(16, 784)[:, order].reshape(shape) if pixels else numbers

                monkeypatch.setattr(model, "gaussian", moved)
                monkeypatch.setattr(steps, "gaussian", moved)
                jax.clear_caches()
            rows = np.arange(64, dtype=np.int32).reshape(4, 16)
            _, metrics = compiled.train_steps(state, h, (images, labels), rows, program=program)
            losses.append(np.asarray(metrics.cross_entropy))
    jax.clear_caches()
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-10)
