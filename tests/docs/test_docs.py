"""The pages are right: links lead somewhere, code runs, commands and flags exist, tables are those of the code."""

import dataclasses
import glob
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import settings_table
from ensembling import row, write_results
from PIL import Image, ImageDraw
from test_layers import ALLOWED, MODULES

from mnist_flax import predict
from mnist_flax.compare import __main__ as compare
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import __main__ as data
from mnist_flax.evaluate import __main__ as evaluate
from mnist_flax.export import __main__ as export
from mnist_flax.process import cli
from mnist_flax.process.distributed_flags import DistributedFlags
from mnist_flax.sweep import __main__ as sweep
from mnist_flax.sweep import experiment_file
from mnist_flax.train import __main__ as train

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "README.md")
}
FENCES = {page: re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) for page, text in PAGES.items()}
COMMANDS: dict[str, Any] = {"train": train, "evaluate": evaluate, "predict": predict, "sweep": sweep, "export": export,
                            "data": data, "compare": compare}  # fmt: skip
QUICK = {
    "evaluate",
    "predict",
    "export",
    "compare",
}  # they run, but for Keras, which takes seconds to import; others are parsed
FLAGS_OF_OTHERS = {"--help", "--editable", "--logdir", "--table", "--config"}  # the last has another field name


def links(text: str) -> list[str]:
    """The targets of links and images in this repository."""
    without_code = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", without_code) if not target.startswith("http")]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in links(path.read_text()):
        assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_page_and_every_picture_is_linked() -> None:
    linked = {((ROOT / page).parent / target).resolve() for page, text in PAGES.items() for target in links(text)}
    assert {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "images").iterdir()} <= linked


def test_the_readme_is_short_and_has_the_two_blocks_that_ci_runs() -> None:
    assert len(README.read_text().splitlines()) <= 130
    first, second = (code for language, code in FENCES["README.md"] if language == "bash")
    assert "mnist_flax.train" in first and "[" not in first and "pytest" in second


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as a reader of the pages has it: runs, a sweep with its networks, and two pictures."""
    members = [f"sweeps/regularization/members/000{number}" for number in (1, 2, 3)]
    for path in ("exp1", "exp2", *members):
        shutil.copytree(finished, tmp_path / path)
    study = tmp_path / "sweeps/regularization"
    (study / "final").mkdir()
    for number in range(10):
        (study / f"final/{number:04d}").symlink_to(finished)
    rows = [row("selection", f"members/{number:04d}", 0.5, seed=number) for number in (1, 2, 3)]
    write_results(study, rows + [row("final", f"final/{number:04d}", 0.5, seed=number) for number in range(10)])
    picture = Image.new("L", (60, 80), 255)
    ImageDraw.Draw(picture).line([(12, 15), (48, 15), (28, 70)], fill=0, width=7)
    picture.save(tmp_path / "digit.png")
    picture.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, words: list[str], function: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command line as the command does, and call the function with it."""
    monkeypatch.setattr(sys, "argv", [f"mnist_flax.{name}", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main(COMMANDS[name].Args, function)
    assert not exit_.value.code, words


def check_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a block of commands: run it if it is quick, else see that it could be run."""
    program, *words = shlex.split(line)
    if program.endswith("python") and words[0] == "-m" and words[1].startswith("mnist_flax."):
        name = words[1].removeprefix("mnist_flax.")
        arguments = [match for word in words[2:] for match in sorted(glob.glob(word)) or [word]]
        quick = name in QUICK and "keras" not in arguments
        run(name, arguments, COMMANDS[name].run if quick else lambda *_: None, monkeypatch)
        if name == "sweep":
            assert (ROOT / arguments[0]).exists(), line
    elif program == "python":  # a benchmark
        source = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), line
    elif program.endswith("pip"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", line)) <= extras.keys(), line


@pytest.mark.parametrize("page", [page for page in PAGES if FENCES[page]])
def test_code_and_commands_work(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for language, code in FENCES[page]:
        if language == "python":
            names = names if page == "docs/tour.md" else {"__name__": "page"}  # one session
            exec(compile(code, page, "exec"), names)
            if "BASE" in names:
                (place / "study.py").write_text(code)
                experiment_file.load(place / "study.py")
        else:
            for line in re.findall(r"^(?:\S*python|\S*pip) .*$", code, re.M):
                check_line(line, monkeypatch)


def test_flags_exist() -> None:
    classes = [*(command.Args for command in COMMANDS.values()), cli.Common, DistributedFlags, Config, Hyperparams]
    names = {field.name.replace("_", "-") for cls in classes for field in dataclasses.fields(cls)}
    known = FLAGS_OF_OTHERS | {f"--{name}" for name in names} | {f"--no-{name}" for name in names}
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```$|^\|.*$|<!--.*?-->", "", text, flags=re.M | re.S)
        assert not {*re.findall(r"(?<!\S)`?(--[a-z][\w-]*)", prose)} - known, page


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    page = settings_table.PAGE.read_text()
    assert [name for name, _ in settings_table.TABLE.findall(page)] == [*settings_table.CLASSES]
    remedy = "python tests/docs/settings_table.py writes the tables"
    assert page == settings_table.with_tables(page), remedy


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table's lines."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_the_map_names_every_module_and_every_import() -> None:
    design = PAGES["docs/design.md"]
    _, modules = design.split("## Every module in one line\n")
    modules, _ = modules.split("\n## Where each kind of change goes\n")
    named = [cells[0].strip("`") for cells in rows(modules) if cells[0][0] == "`"]
    assert sorted(named) == sorted(MODULES)
    said = {cells[0]: {*re.findall(r"[\w.]*\w", cells[1].partition(";")[0])} for cells in rows(design)}
    assert {part: said[part] - {"errors"} for part in ALLOWED} == {p: set(a) - {"errors"} for p, a in ALLOWED.items()}


def test_the_citation_is_of_the_latest_release() -> None:
    citation = dict(re.findall(r"^([\w-]+): *(\S.*)$", (ROOT / "CITATION.cff").read_text(), re.M))
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert (citation["version"], citation["date-released"]) == released[0]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
