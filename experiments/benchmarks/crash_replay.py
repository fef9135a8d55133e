"""Record a command's file system calls with strace, and replay them into the states that a power cut can leave.

    disk = Disk()
    for call in record(["python", "-m", "mnist_flax.train", "--workdir", f"{root}/run"], root):
        disk.apply(call)
        for lost, tree in disk.after_power_cut():
            ...

POSIX promises only what was synced: `fsync` of a file keeps its bytes, `fsync` of a directory keeps its entries.
Anything else may be there after a power cut or not. The method is that of Pillai et al., OSDI 2014.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Tree: TypeAlias = Any  # a file's bytes, a symbolic link's target (str), or a directory: a tuple of (name, Tree)

_TRACED = (
    "open,openat,write,writev,pwrite64,truncate,ftruncate,rename,renameat,renameat2,symlink,symlinkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,fsync,fdatasync,utimensat"
)
_SUCCEEDED = re.compile(r"(\w+)\((.*)\) += \d+")
_PART = re.compile(r'<((?:\\x\w\w)+)>(\(deleted\))?|"((?:\\x\w\w)*)"')  # the path of an open file; a string


class Call(NamedTuple):
    """A call that changed a file or a directory, or synced it. Paths are relative to the recorded directory."""

    name: str  # open, write, truncate, rename, symlink, mkdir, remove, sync or touch
    path: str  # of two, the new one
    more: bytes | str | int = ""  # the bytes written; the old path; the link's target; the length; "truncate"


def record(command: list[str], root: Path) -> list[Call]:
    """Run a command that names `root`, an empty directory, by its absolute path; return its calls there as they ended.

    Raises `ValueError` if these calls, replayed, do not give what is in `root` now: then not all were understood.
    """
    with tempfile.NamedTemporaryFile("r") as trace:
        strace = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000000", "-o", trace.name, "-e", _TRACED]
        subprocess.run([*strace, *command], check=True, stdout=subprocess.DEVNULL)
        calls = list(parse(trace, root))
    disk = Disk()
    for call in calls:
        disk.apply(call)
    if next(disk.after_power_cut())[1] != read_tree(root):
        raise ValueError(f"the recorded calls do not give what is in {root}")
    return calls


def parse(lines: Iterable[str], root: Path) -> Iterator[Call]:
    """The calls in `root` among the lines that strace wrote."""
    begun: dict[str, str] = {}  # a thread's call that another thread's line interrupts
    for line in lines:
        thread, text = line.split(maxsplit=1)
        if "<unfinished ...>" in text:
            begun[thread] = text.partition("<unfinished ...>")[0]
            continue
        if text.startswith("<... "):
            text = begun.pop(thread) + text.partition(" resumed>")[2]
        if (match := _SUCCEEDED.match(text)) and (call := _call(match[1], match[2])):
            if Path(call.path).is_relative_to(root):
                more = os.path.relpath(str(call.more), root) if call.name == "rename" else call.more
                yield Call(call.name, os.path.relpath(call.path, root), more)


def _call(name: str, args: str) -> Call | None:
    """One call, with absolute paths; None if it changes nothing."""
    file, strings, paths = "", [], []
    for opened, deleted, string in _PART.findall(args):
        content = bytes.fromhex((opened or string).replace("\\x", ""))
        if opened:
            file = "" if deleted else os.fsdecode(content)
        else:
            strings.append(content)
            paths.append(os.path.join(file, os.fsdecode(content)))  # `file` is a directory here, or empty
    if "write" in name:  # they all append: `record` would raise else
        return Call("write", file, b"".join(strings))
    if "sync" in name:
        return Call("sync", file)
    path = paths[0] if paths else file
    if "truncate" in name:
        return Call("truncate", path, int(args.rpartition(",")[2]))
    if "open" in name:
        writes = "O_CREAT" in args or "O_TRUNC" in args
        return Call("open", path, "truncate" if "O_TRUNC" in args else "") if writes else None
    if two := re.match("rename|symlink", name):
        return Call(two[0], paths[1], paths[0])
    return Call({"utimensat": "touch", "mkdir": "mkdir", "mkdirat": "mkdir"}.get(name, "remove"), path)


class _Node:
    """A file, a directory or a symbolic link: as programs see it, and as it is surely on the disk."""

    def __init__(self, now: Any) -> None:
        self.now: Any = now  # bytes, entries by name (dict[str, _Node]), or a target (str)
        self.synced: Any = now if isinstance(now, str) else type(now)()


_Choose = Callable[[bytes, bytes], bytes]
_BYTES: dict[str, _Choose] = {  # what is left of a file, from its bytes now and those that were synced
    "kept": lambda now, synced: now,
    "torn": lambda now, synced: now[: (len(now) + (len(synced) if now.startswith(synced) else 0)) // 2],
    "dropped": lambda now, synced: synced,
}


class Disk:
    """A directory to which calls are applied; it is on the disk itself, what is in it must be synced."""

    def __init__(self) -> None:
        self._root = _Node({})

    def apply(self, call: Call) -> None:
        """Do what a call did."""
        path = Path(call.path)
        if call.name == "sync":
            node = self._find(path)
            node.synced = dict(node.now) if isinstance(node.now, dict) else node.now
            return
        entries = self._find(path.parent).now
        match call:
            case Call("mkdir"):
                entries[path.name] = _Node({})
            case Call("open", _, truncate):
                node = entries.setdefault(path.name, _Node(b""))
                node.now = b"" if truncate else node.now
            case Call("write", _, bytes(written)):
                entries[path.name].now += written
            case Call("truncate", _, int(length)):
                entries[path.name].now = entries[path.name].now[:length].ljust(length, b"\0")
            case Call("symlink", _, str(target)):
                entries[path.name] = _Node(target)
            case Call("rename", _, str(old)):
                entries[path.name] = self._find(Path(old).parent).now.pop(Path(old).name)
            case Call("remove"):
                del entries[path.name]

    def synced(self, path: str) -> bytes:
        """The bytes of a file that were synced."""
        return self._find(Path(path)).synced

    def after_power_cut(self) -> Iterator[tuple[str, Tree]]:
        """What may be left if the power is cut now, and what is lost in each; the first loses nothing.

        Bytes that were not synced are kept, torn or dropped, in all files. Entries that were not synced are kept,
        dropped in all directories, or dropped in one.
        """
        changed = {node: path for node, path in _directories(self._root, ".").items() if node.now != node.synced}
        losses = [("kept", []), ("dropped", [*changed])]
        losses += [(f"of {path} dropped", [node]) for node, path in changed.items()]
        for entries, nodes in losses:
            for content, choose in _BYTES.items():
                yield f"bytes {content}, entries {entries}", _tree(self._root, choose, nodes)

    def _find(self, path: Path) -> _Node:
        node = self._root
        for name in path.parts:
            node = node.now[name]
        return node


def _directories(node: _Node, path: str) -> dict[_Node, str]:
    """All directories that can be reached from one, through entries that were synced or not."""
    found: dict[_Node, str] = {}
    if isinstance(node.now, dict):
        found[node] = path
        for name, child in [*node.synced.items(), *node.now.items()]:
            found |= _directories(child, os.path.join(path, name))
    return found


def _tree(node: _Node, choose: _Choose, dropped: list[_Node]) -> Tree:
    """What is left of a node if the `dropped` directories lose the entries that were not synced."""
    if isinstance(node.now, dict):
        entries = node.synced if node in dropped else node.now
        return tuple((name, _tree(child, choose, dropped)) for name, child in sorted(entries.items()))
    return node.now if isinstance(node.now, str) else choose(node.now, node.synced)


def read_tree(path: Path) -> Tree:
    """What is at a path."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return tuple((name, read_tree(path / name)) for name in sorted(os.listdir(path)))
    return path.read_bytes()
