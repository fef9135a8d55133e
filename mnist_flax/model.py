"""The network: a multi-layer perceptron with BatchNorm and Dropout, in Flax linen.

model = MLP(widths=(512, 512), batch_norm_layers=(2,), num_classes=10)
variables = model.init(jax.random.key(0), images)
logits = model.apply(variables, images)  # [N, num_classes]
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mnist_flax.config import StaticConfig

BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.99, 1e-3  # Keras's defaults; not settings
_NARROW = 32  # columns


class DenseLayer(NamedTuple):
    """The arrays of a dense layer, and of the BatchNorm after it: scale, bias, mean and var, [units] each, or None."""

    kernel: Any  # [inputs, units]
    bias: Any  # [units]
    batch_norm: dict[str, Any] | None


class MLP(nn.Module):
    """Dense -> [BatchNorm] -> [Noise] -> relu -> Dropout for each hidden layer, then a Dense layer to the logits.

    Layers are named `dense_1`, `batch_norm_1`, `noise_1`, ... and counted from 1; the last `dense_*` is the output.
    """

    widths: tuple[int, ...]
    batch_norm_layers: tuple[int, ...]
    num_classes: int
    precision: Literal["float32", "bfloat16"] = "float32"
    noise_at: Literal["none", "images", "hidden", "both"] = "none"

    @nn.compact
    def __call__(
        self, images: ArrayLike, *, dropout_rate: ArrayLike = 0.0, noise: ArrayLike = 0.0, mask: Array | None = None,
        train: bool = False,
    ) -> Array:  # fmt: skip
        """Logits of a batch.

        Args:
          images: [N, 28, 28, 1], [N, 28, 28] or [N, 784] (whatever the dataset's shape is); uint8 in 0..255, or float
            in 0..1.
          dropout_rate: [] share of units to drop, used in training; may be traced.
          noise: [] standard deviation of the noise, used in training; may be traced.
          mask: bool [N], False for padding, which BatchNorm's statistics leave out; None counts every example.
          train: use and update the batch's own statistics, drop units (needs the rng `dropout`), and add noise (needs
            the rng `noise`) where `noise_at` says.

        Returns:
          float32 [N, num_classes]; float64 under `jax_enable_x64`.
        """
        x = jnp.asarray(images)
        x = x.reshape(x.shape[0], -1)  # [N, 784]
        x = in_0_to_1(x)
        if train and self.noise_at in ("images", "both"):
            x = Noise(name="noise_0")(x, noise)
        product = partial(_product, dtype=self.precision)
        dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform(), dot_general=product)
        for layer, width in enumerate(self.widths, start=1):
            x = dense(width, name=f"dense_{layer}")(x)
            if layer in self.batch_norm_layers:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=BATCH_NORM_MOMENTUM,
                    epsilon=BATCH_NORM_EPSILON,
                    name=f"batch_norm_{layer}",
                )(x, mask=None if mask is None else mask[:, None])
            if train and self.noise_at in ("hidden", "both"):
                x = Noise(name=f"noise_{layer}")(x, noise)
            x = nn.relu(x)
            if train:
                x = Dropout(name=f"dropout_{layer}")(x, dropout_rate)
        output = len(self.widths) + 1
        return dense(self.num_classes, name=f"dense_{output}")(x)

    # What others may ask of a network.

    def kernel_path(self, layer: int) -> tuple[str, ...]:
        """Where in `params` the kernel of a layer is, the layers counted from 1."""
        return f"dense_{layer}", "kernel"

    def dense_layers(self, variables: Any) -> list[DenseLayer] | None:
        """The layers in order, relu between them, as the exports write them; None from a network that has others."""
        params, statistics = variables["params"], variables["batch_stats"]
        layers = []
        for layer in range(1, len(self.widths) + 2):
            dense, name = params[f"dense_{layer}"], f"batch_norm_{layer}"
            batch_norm = {**params[name], **statistics[name]} if name in params else None
            layers.append(DenseLayer(dense["kernel"], dense["bias"], batch_norm))
        return layers

    def first_layer_pictures(self, params: Any, image_shape: tuple[int, ...]) -> Any:
        """The incoming weights of each unit of the first layer as an image: [units, H, W, C]."""
        kernel = params["dense_1"]["kernel"]
        return kernel.T.reshape(-1, *image_shape)


Network = MLP
"""The type of any network: another one, which answers the same three questions, is added here with `|`."""


def make_model(static: StaticConfig, num_classes: int) -> Network:
    """The network that a config describes."""
    return MLP(static.widths, static.batch_norm_layers, num_classes, static.precision, static.noise_at)


def _product(x: Array, kernel: Array, dimension_numbers: Any, *, dtype: str, **_: Any) -> Array:
    """`x @ kernel`, [B, in] and [in, out], in the precision `dtype`; summed in the type that `x` came in."""
    if kernel.shape[1] < _NARROW:
        # The barrier's own gradient is a barrier: it keeps XLA from writing the kernel's gradient [in, few] as it would
        # be written for many columns, which takes CPUs ten times as long as [few, in] and its transpose.
        kernel, dimension_numbers = jax.lax.optimization_barrier(kernel.T), (((1,), (1,)), ((), ()))
    if dtype == "bfloat16":
        return _bfloat16_product(x, kernel, dimension_numbers[0][1][0])
    # GPUs and TPUs would round the factors, to TF32 or bfloat16, unless told otherwise.
    highest = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision=highest, preferred_element_type=x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_product(x: Array, kernel: Array, axis: int) -> Array:
    """The sums of x [B, in] and the kernel's `axis`: all factors are rounded to bfloat16, backward too, nothing else.

    JAX's own gradient would multiply by a cotangent that is not rounded, and round the kernel's gradient.
    """
    return _sums_of(x, kernel, 1, axis, x.dtype)


def _forward(x: Array, kernel: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    factors = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _sums_of(*factors, 1, axis, x.dtype), factors


def _backward(axis: int, factors: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = factors
    ordered = (x, cotangent) if axis == 0 else (cotangent, x)  # the kernel's axes are [in, out], or [out, in]
    of = partial(_sums_of, dtype=cotangent.dtype)
    return of(cotangent, kernel, 1, 1 - axis), of(*ordered, 0, 0)


_bfloat16_product.defvjp(_forward, _backward)


def _sums_of(a: Array, b: Array, axis_a: int, axis_b: int, dtype: Any) -> Array:
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=dtype)


def in_0_to_1(images: Array) -> Array:
    """Images uint8 in 0..255 as floats in 0..1; floats stay as they are."""
    return images.astype(float) / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images.astype(float)


class Dropout(nn.Module):
    """`nn.Dropout` with the rate as an argument, so that it may be traced (Srivastava et al., JMLR 15, 2014).

    A unit takes 16 random bits, not 32, which halves their number; the rate counts to the nearest 1/65536. It must be
    below 1.
    """

    @nn.compact
    def __call__(self, x: Array, rate: ArrayLike) -> Array:
        """Zero a share `rate` of `x` [B, units] and scale the rest by 1 / (1 - rate). Needs the rng `dropout`."""
        keep = 1.0 - jnp.asarray(rate)
        batch, units = x.shape
        # The barrier keeps XLA from computing the words once for each half.
        words = jax.lax.optimization_barrier(random_bits(self.make_rng("dropout"), (batch, -(-units // 2))))
        limit = jnp.round(keep * 65536).astype(jnp.uint32)
        kept = jnp.concatenate([words >> 16 < limit, words & 0xFFFF < limit], axis=1)[:, :units]
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


class Noise(nn.Module):
    """Gaussian noise of mean 0, added to whatever comes in."""

    @nn.compact
    def __call__(self, x: Array, deviation: ArrayLike) -> Array:
        """`x` [B, units] plus noise of a standard deviation. Needs the rng `noise`."""
        return x + (deviation * gaussian(self.make_rng("noise"), x.shape)).astype(x.dtype)


def gaussian(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers of a shape, from 23 random bits each: none is further than 5.3 from 0."""
    uniform = ((random_bits(key, shape) >> 9).astype(float) + 0.5) * 2**-22 - 1  # within -1..1
    return math.sqrt(2) * jax.lax.erf_inv(uniform)


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Random uint32 of a shape: the bits of `jax.random.bits`, written so that CPUs compute them in one pass.

    JAX's own are a loop there, of which each turn is a pass. This is Threefry-2x32 in 20 rounds (Salmon et al., SC
    2011) of the numbers from 0. Other kinds of keys get JAX's.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32" or not jax.config.jax_threefry_partitionable:  # pyright: ignore
        return jax.random.bits(key, shape, jnp.uint32)
    first, second = jax.random.key_data(key)
    keys = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    x = jnp.broadcast_to(keys[0], shape)
    y = jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape) + keys[1]
    for turn in range(5):
        for rotation in (13, 15, 26, 6) if turn % 2 == 0 else (17, 29, 16, 24):
            x = x + y
            y = x ^ (y << rotation | y >> 32 - rotation)
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return x ^ y
