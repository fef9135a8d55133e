"""What `benchmarks/hlo.py` reads in a compiled program, of small programs that do what ours must not do."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mnist_flax.placement import data_mesh

_SPEC = importlib.util.spec_from_file_location("hlo", Path(__file__).parents[2] / "experiments/benchmarks/hlo.py")
hlo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hlo)


def text(function: object, *shapes: object, **options: object) -> str:
    return jax.jit(function, **options).lower(*shapes).compile().as_text()


def vector(size: int, axis: str | None = None) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(data_mesh(8), PartitionSpec(axis))
    return jax.ShapeDtypeStruct((size,), np.float32, sharding=sharding)


def test_collectives_in_a_loop_and_outside() -> None:
    def loop(x: jax.Array, start: jax.Array) -> jax.Array:  # [64], split; [3]
        turn = lambda carry, _: (jnp.cos(carry) + jnp.sin(carry[0] * x).sum(), None)  # noqa: E731
        return jax.lax.scan(turn, start, length=5)[0] * jnp.max(x)

    compiled = text(loop, vector(64, "data"), vector(3))
    assert hlo.collectives(compiled) == ({"all-reduce": (1, 4)}, {"all-reduce": (1, 4)})
    assert hlo.collectives(text(jnp.sin, vector(64, "data"))) == ({}, {})


def test_a_gathered_array_has_its_whole_size() -> None:
    whole = NamedSharding(data_mesh(8), PartitionSpec())
    compiled = text(jnp.sin, vector(64, "data"), out_shardings=whole)
    assert hlo.collectives(compiled) == ({}, {"all-gather": (1, 4 * 64)})


def test_joined_and_asynchronous_collectives() -> None:
    """As the compiler for TPUs writes them; an exchange in two halves is one, with the result of the second."""
    lines = """HloModule m, input_output_alias={ {0}: (1, {}, may-alias), {1, 0}: (2, {}, may-alias) }

%region (a: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %a)
}

%body (p: (f32[4])) -> (f32[4]) {
  %r = (f32[4]{0:T(128)S(1)}, /*index=1*/bf16[2,3]{1,0}, pred[5]) all-reduce(%p, %p, %p), to_apply=%region
  %start = (f32[4], f32[16]) all-gather-start(%p), dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
}

ENTRY %main (q: f32[4]) -> f32[4] {
  %w = (f32[4]) while(%q), condition=%region, body=%body
}
"""
    assert hlo.collectives(lines) == ({"all-reduce": (1, 16 + 12 + 5), "all-gather": (1, 64)}, {})
    assert hlo.donated(lines) == [1, 2]


def test_donated_arguments() -> None:
    add = lambda x, y: (x + 1, y + 1)  # noqa: E731
    assert hlo.donated(text(add, vector(8), vector(8), donate_argnums=(1,))) == [1]
    assert hlo.donated(text(add, vector(8), vector(8))) == []


def test_float64() -> None:
    assert not hlo.has_float64(text(jnp.sin, vector(8)))
    with jax.enable_x64(True):
        assert hlo.has_float64(text(lambda x: x * np.float64(2).astype(jnp.float64) + jnp.arange(8.0), vector(8)))


def test_calls_of_the_host() -> None:
    shape = jax.ShapeDtypeStruct((8,), np.float32)
    assert hlo.host_calls(text(partial(jax.pure_callback, np.sin, shape), vector(8)))
    assert not hlo.host_calls(text(jnp.sin, vector(8)))
    sent = "%s = (f32[], u32[], token[]) send(%a, %b), channel_id=1, is_host_transfer=true"  # by a TPU
    assert hlo.host_calls(sent) == ["is_host_transfer"]
