"""Every setting of a run: its type, default, range, example and help stand here and nowhere else.

    config = Config(hparams=Hyperparams(learning_rate=3e-4), epochs=10)

Which class holds a setting says who sees it: `Hyperparams` are arrays inside a step and may differ between the members
of a population; `StaticConfig` is what traced code may read; the rest of `Config` is read by the host alone. A wrong
value raises `InputError` with the field, the value and the remedy. Nothing here needs JAX.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mnist_flax.errors import InputError
from mnist_flax.settings import KINDS, LATER, SHARED, Between, Layers, Matches, Needs, settings_of

_RESTORE = "restore it or choose another --workdir"
_TINY, _HUGE, _BELOW_1 = 1e-30, 1e30, 1 - 2**-24  # well inside float32, whose largest number below 1 is the last
# A dataset names a directory: nothing in it may climb out of the data directory.
_DATASET = Matches(r"[a-z]\w*(/[A-Za-z0-9][\w.\-]*)?(:\d+\.\d+\.\d+)?", "a TFDS name such as mnist or emnist/digits")
_SPLIT = Matches(r"[\w\[\]:%+\-() ]+", "a TFDS split such as train, test or train[:50000]")


@dataclass(frozen=True)
class Hyperparams:
    """What may differ between the members of one population without changing the compiled program.

    Python numbers in a `Config`; float32 [] (seed: uint32 []) inside a step; [P] outside the vmap of a population.
    Not checked here, since it also carries traced arrays: `Config` does it.
    """

    learning_rate: Annotated[float, Between(_TINY, _HUGE, "0.001")] = 1e-3
    """Adam's step size; the schedule multiplies it."""
    l2: Annotated[float, Between(0.0, _HUGE, "0.001"), Needs("l2_layers")] = 1e-3
    """Weight of the penalty l2 * sum(kernel^2), without 1/2, as in Keras."""
    max_norm: Annotated[float, Between(_TINY, _HUGE, "3"), Needs("max_norm_layers")] = 3.0
    """Largest norm of a unit's incoming weights in `max_norm_layers`, held after every update."""
    dropout_rate: Annotated[float, Between(0.0, _BELOW_1, "0.2")] = 0.2
    """Share of each hidden layer's units that a training step sets to zero; 0 turns dropout off."""
    label_smoothing: Annotated[float, Between(0.0, _BELOW_1, "0.1")] = 0.0
    """Share of the target that is spread evenly over all classes, in training only."""
    noise: Annotated[float, Between(0.0, _HUGE, "0.3"), LATER, Needs("noise_at")] = 0.0
    """Standard deviation of the Gaussian noise that a training step adds where `noise_at` says."""
    shift: Annotated[float, Between(0.0, 64, "2"), LATER, Needs("distort")] = 1.0
    """Largest shift of an image by `distort`, in pixels, down and right."""
    rotation: Annotated[float, Between(0.0, 180, "10"), LATER, Needs("distort")] = 10.0
    """Largest angle by which `distort` turns an image, in degrees."""
    scaling: Annotated[float, Between(0.0, 0.9, "0.1"), LATER, Needs("distort")] = 0.1
    """Largest share by which `distort` makes an image taller, wider, or smaller."""
    shear: Annotated[float, Between(0.0, 2, "0.1"), LATER, Needs("distort")] = 0.1
    """Largest slant by `distort`: how many pixels a row moves against the next one."""
    elastic_strength: Annotated[float, Between(0.0, 10**4, "30"), LATER, Needs("distort")] = 30.0
    """Strength of the elastic distortion: its random displacements are in -1..1 pixel before they are smoothed."""
    elastic_width: Annotated[float, Between(0.1, 64, "5"), LATER, Needs("distort")] = 5.0
    """Standard deviation of the Gaussian that smooths the elastic displacements, in pixels."""
    adversarial_weight: Annotated[float, Between(0.0, _HUGE, "1"), LATER, Needs("virtual_adversarial")] = 1.0
    """Weight of the `virtual_adversarial` term in the loss that is trained on; reported losses leave the term out."""
    adversarial_radius: Annotated[float, Between(_TINY, _HUGE, "2"), LATER, Needs("virtual_adversarial")] = 2.0
    """Length of the `virtual_adversarial` change of an image, whose pixels lie in 0..1."""
    average_decay: Annotated[float, Between(0.0, _BELOW_1, "0.999"), LATER, Needs("average_weights")] = 0.999
    """Share of `average_weights` that each step keeps of the average before it."""
    b1: Annotated[float, Between(0.0, _BELOW_1, "0.9")] = 0.9
    """Adam's decay of the mean of the gradients."""
    b2: Annotated[float, Between(_TINY, _BELOW_1, "0.999")] = 0.999
    """Adam's decay of the mean of the squared gradients."""
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    """Initial weights, dropout masks, noise and the order of the data follow from it."""


@dataclass(frozen=True)
class StaticConfig:
    """What compiled code may read: part of the key under which JAX finds the compiled program."""

    widths: Annotated[tuple[int, ...], Between(1, 2**16, "512 512")] = (512, 512)
    """Units of each hidden layer."""
    batch_norm_layers: Annotated[tuple[int, ...], Layers(output=False)] = (2,)
    """Hidden layers, counted from 1, that carry BatchNorm between the product and the relu."""
    l2_layers: Annotated[tuple[int, ...], Layers(output=True)] = (2,)
    """Layers, counted from 1, whose kernel carries the L2 penalty; the last is the output layer."""
    max_norm_layers: Annotated[tuple[int, ...], Layers(output=True)] = ()
    """Layers, counted from 1, whose units' incoming weights are held to `max_norm`."""
    noise_at: Annotated[Literal["none", "images", "hidden", "both"], LATER, Needs("noise")] = "none"
    """Where training adds `noise`: to the images (0..1), in hidden layers (between BatchNorm and relu), or both."""
    distort: Annotated[Literal["none", "affine", "elastic", "both"], LATER] = "none"
    """How each step of training distorts its images: affine (shift, rotation, scaling, shear), elastic, or both."""
    virtual_adversarial: Annotated[bool, LATER] = False
    """Also train the prediction not to change where a small change of the image changes it most (VAT)."""
    average_weights: Annotated[bool, LATER] = False
    """Evaluate, save as best, load and export with an exponential average of the weights over the steps."""
    precise_batch_norm: Annotated[bool, LATER, Needs("batch_norm_layers")] = False
    """At every evaluation and save, measure BatchNorm's statistics on the whole training split, without noise."""

    adam_epsilon: Annotated[float, Between(_TINY, 1, "1e-7")] = 1e-7
    """Adam's epsilon, added to the root of the bias-corrected second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or decayed to 0 at the end of the run."""
    epochs: Annotated[int, Between(1, 10**6)] = 4
    """Passes over the training split."""
    warmup_epochs: Annotated[float, Between(0, "epochs")] = 0.0
    """Epochs over which the learning rate rises linearly to its full value."""
    precision: Annotated[Literal["float32", "bfloat16"], LATER] = "float32"
    """What matrix products read; they sum in float32 all the same. bfloat16 is faster where the hardware has it."""

    def __post_init__(self) -> None:
        for name, setting in settings_of(type(self)).items():
            if isinstance(value := getattr(self, name), list):  # a tuple: programs are looked up by their settings
                object.__setattr__(self, name, value := tuple(value))
            setting.check(value, self)


@dataclass(frozen=True)
class Config(StaticConfig):
    """One run. The defaults are the Keras tutorial, step for step."""

    hparams: Hyperparams = field(default_factory=Hyperparams)

    batch_size: Annotated[int, Between(1, 2**20)] = 128
    """Examples a step, over all devices; the last, short batch of an epoch is trained on too."""
    dataset: Annotated[str, _DATASET, SHARED] = "mnist"
    """mnist, fashion_mnist, kmnist, or any prepared TFDS dataset with `image` and `label`."""
    train_split: Annotated[str, _SPLIT] = "train"
    """TFDS split to train on, such as train[:50000]."""
    eval_split: Annotated[str, _SPLIT, SHARED] = "test"
    """TFDS split to evaluate after each epoch, such as train[50000:]."""

    steps_per_call: Annotated[int, Between(1, 10**6), SHARED] = 67
    """Largest number of steps that one call of the compiled program runs; a stop waits for one call or two."""
    eval_batch_size: Annotated[int, Between(1, 2**20), SHARED] = 1000
    """Examples an evaluation step; changes memory and speed, not the result."""
    checkpoint_every: Annotated[int, Between(0, 10**9), SHARED] = 0
    """Also save every so many steps inside an epoch; 0 saves after each epoch only."""
    keep: Annotated[int, Between(1, 10**6), SHARED] = 2
    """Latest checkpoints to keep; the best is kept as well."""

    def __post_init__(self) -> None:
        for name, setting in settings_of(Hyperparams).items():
            setting.check(getattr(self.hparams, name), self)
        super().__post_init__()

    def static(self) -> StaticConfig:
        """The part that a compiled program may read."""
        return StaticConfig(**{name: getattr(self, name) for name in settings_of(StaticConfig)})


def flatten(config: Config) -> dict[str, Any]:
    """Every setting by its flag's name, the hyperparameters first."""
    values = {name: getattr(config.hparams, name) for name in settings_of(Hyperparams)}
    return values | {name: getattr(config, name) for name in settings_of(Config)}


def without_effect(config: Config) -> list[str]:
    """What is set and changes nothing without another setting, a sentence each, such as `l2` without `l2_layers`."""
    given, defaults, table = flatten(config), flatten(Config()), settings_of(Hyperparams) | settings_of(Config)
    needs = {name: setting.needs for name, setting in table.items() if setting.needs}
    idle = {name: need for name, need in needs.items() if given[name] != defaults[name]}
    return [
        f"{name}={given[name]} has no effect without {need}"
        for name, need in idle.items()
        if given[need] in ((), False, "none")  # 0 is False
    ]


def to_json(config: Config) -> dict[str, Any]:
    """The whole config as plain JSON values, but for defaults that are marked `LATER`; `from_json` is its inverse."""
    return {"hparams": _written(config.hparams)} | _written(config)


def from_json(tree: object, where: str, remedy: str = _RESTORE) -> Config:
    """Read what `to_json` wrote, as strictly as the command line.

    Raises `InputError`, with the file (`where`) and the `remedy`, if a field is missing, unknown, of the wrong type or
    out of range.
    """
    values = _read(Config, tree, where, remedy)
    values["hparams"] = Hyperparams(**_read(Hyperparams, values["hparams"], f"{where}: hparams", remedy))
    try:
        return Config(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _written(settings: Any) -> dict[str, Any]:
    """The settings of a `Config` or of its `Hyperparams` as JSON values."""
    values = {}
    for name, setting in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if LATER not in setting.marks or value != setting.default:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _read(cls: type, tree: object, where: str, remedy: str) -> dict[str, Any]:
    """The values of `cls`'s fields in `tree`; raises `InputError` unless they fit exactly."""
    if not isinstance(tree, dict):
        raise InputError(f"{where} must be an object of fields, not {tree!r:.40}; {remedy}")
    table, known = settings_of(cls), {f.name for f in dataclasses.fields(cls)}
    required = {name for name in known if name not in table or LATER not in table[name].marks}
    for what, names in (("lacks", required - tree.keys()), ("has the unknown", tree.keys() - known)):
        if names:
            raise InputError(f"{where} {what} field {', '.join(sorted(names))}; {remedy}")
    values: dict[str, Any] = {}
    for name, value in tree.items():
        try:
            if name not in table and not isinstance(value, dict):
                raise TypeError
            values[name] = table[name].from_json(value) if name in table else value
        except TypeError:
            kind = KINDS[table[name].kind] if name in table else "an object"
            raise InputError(f"{where}: {name}={value!r:.60} has the wrong type, not {kind}; {remedy}") from None
        except OverflowError:
            raise InputError(f"{where}: {name} is out of range; {remedy}") from None
    return values
