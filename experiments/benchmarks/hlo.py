"""Read a compiled program (the text of its optimised HLO): collectives, donated arguments, float64, calls of the host.

text = jax.jit(f).lower(*arguments).compile().as_text()
each_step, once = collectives(text)
"""

import collections
import re

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
# The result of an asynchronous collective is that of its second half.
COLLECTIVE = re.compile(rf"= ([^%]*?) ({KINDS})(?:-done)?\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.-]+)|branch_computations={([^}]*)}")
Counts = dict[str, tuple[int, int]]
"""By kind: how many, and their bytes."""


def collectives(text: str) -> tuple[Counts, Counts]:
    """What the devices exchange in each turn of a loop, and outside of loops; each kind with its count and bytes.

    The bytes are those of the results on one device. What XLA joins into one exchange counts as one.
    """
    bodies = _computations(text)
    inside = _reachable({name for lines in bodies.values() for name in re.findall(r"body=%?([\w.-]+)", lines)}, bodies)
    found: tuple[Counts, Counts] = {}, {}
    for name, lines in bodies.items():
        counts = found[name not in inside]
        for result, kind in COLLECTIVE.findall(lines):
            count, size = counts.get(kind, (0, 0))
            counts[kind] = count + 1, size + _bytes(result)
    return found


def donated(text: str) -> list[int]:
    """The numbers of the arguments whose memory the results use."""
    header = text.partition("\n")[0]
    return sorted(int(number) for number in re.findall(r"\{[\d, ]*\}: \((\d+), \{\}", header))


def has_float64(text: str) -> bool:
    """Whether any array is of 64-bit floats."""
    return re.search(r"\b(?:f64|c128)\[", text) is not None


def custom_calls(text: str) -> dict[str, int]:
    """How often each function is called that HLO has no operation for."""
    return dict(sorted(collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text)).items()))


def host_calls(text: str) -> list[str]:
    """Whatever stops a device to talk to its host: infeed, outfeed, transfers and Python callbacks."""
    fed = re.findall(r" ((?:in|out)feed)\(", text) + re.findall(r"(is_host_transfer)=true", text)
    return sorted({*fed, *(name for name in custom_calls(text) if re.search("callback|host", name, re.IGNORECASE))})


def _computations(text: str) -> dict[str, str]:
    """The lines of each computation, by its name."""
    return dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\n((?:.*\n)*?)\}", text, re.MULTILINE))


def _reachable(names: set[str], bodies: dict[str, str]) -> set[str]:
    """These computations, and all that they call."""
    found: set[str] = set()
    while names:
        found |= names
        called = {part for name in names for pair in CALLED.findall(bodies.get(name, "")) for part in pair if part}
        names = {name.strip(" %") for part in called for name in part.split(",")} - found
    return found


def _bytes(shapes: str) -> int:
    """Of all arrays of a shape or a tuple of shapes."""
    total = 0
    for name, bits, dimensions in ARRAY.findall(shapes):
        size = 8 if name == "pred" else int(bits)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size // 8
    return total
