"""Every Python snippet of README.md and docs/ runs, every command in them exists with its options, the site builds
without a warning, and its API pages have every public name."""
# SPDX-License-Identifier: MIT

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from hrel_ext import cli
from hrel_ext.pruning import prune, save_pruned
from hrel_ext.zoo.data import Batches, digits
from hrel_ext.zoo.models import lenet5

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PUBLIC = ("hrel_ext", "hrel_ext.pruning", "hrel_ext.report")


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in these languages, with the line at which each begins."""
    text = page.read_text()
    found = [(text[: m.start(2)].count("\n"), *m.groups()) for m in FENCE.finditer(text)]
    return [(line, code) for line, language, code in found if language in languages]


def ids(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


# Snippets


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    """The folder that `hrel prune lenet5` makes, so far as snippets load it, from a network that is not trained."""
    splits, model = digits(), lenet5()
    batches = Batches(splits.train.take(torch.arange(200)), 100)
    result = prune(model, batches, splits.train.images[:1], target={"macs": 0.4})
    folder = tmp_path_factory.mktemp("runs")
    save_pruned(folder / "lenet5-digits", model, result, input_shape=splits.shape, model_name="lenet5")
    return folder


SNIPPETS = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", SNIPPETS, ids=ids(SNIPPETS))
def test_snippets_run_from_top_to_bottom(page, quick_start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quick_start, "runs")
    torch.manual_seed(0)
    namespace = {"__name__": page.stem}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, page, "exec"), namespace)  # errors name the line of the page


# Commands


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """The commands of the blocks that are not Python, line by line, without what the shell does before them."""
    found = []
    for start, code in blocks(page, "", "bash", "console"):
        for number, line in enumerate(code.splitlines()):
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a table or a tree with an apostrophe
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                found.append((start + number + 1, words))
    return found


HREL = [
    (page, line, words[words.index("hrel_ext.cli") + 1 :] if "hrel_ext.cli" in words else words[1:])
    for page in PAGES
    for line, words in commands(page)
    if words[0] == "hrel" or "hrel_ext.cli" in words
]


@pytest.mark.parametrize(("page", "line", "words"), HREL, ids=[f"{p.name}:{n}" for p, n, _ in HREL])
def test_command_of_a_page_exists_with_its_options(page, line, words, monkeypatch):
    """`prune` and `run` check all that they check before they run, the others what can be checked without a run."""
    monkeypatch.setattr(cli, "_run", lambda *args: None)
    monkeypatch.setattr(cli, "_print_plan", lambda *args: None)
    name, *options = words
    if "..." in options:  # arguments that a line above it has
        assert name in typer.main.get_command(cli.app).commands
    elif name in ("prune", "run"):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, f"{page}:{line}: {done.output} {done.exception}"
    else:
        command = typer.main.get_command(cli.app).commands[name]
        command.make_context(name, options)  # raises where an option or argument is wrong


def test_wrong_commands_are_found(tmp_path):
    command = typer.main.get_command(cli.app).commands["export"]
    with pytest.raises(Exception, match="No such option: --onyx"):
        command.make_context("export", ["runs/x", "--onyx", "x.onnx"])
    page = tmp_path / "page.md"
    page.write_text("```bash\nHREL_X=1 hrel prune lenet5 --epochs 1  # a comment\n```\n```python\nhrel\n```\n")
    assert commands(page) == [(2, ["hrel", "prune", "lenet5", "--epochs", "1"])]
    assert CliRunner().invoke(cli.app, ["prune", "lenet6"]).exit_code != 0


def test_other_commands_of_the_pages_name_what_is_there():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        for line, words in commands(page):
            where = f"{page.name}:{line}"
            if words[0] == "make":
                assert set(words[1:]) <= set(targets), where
            script = words[1] if words[0] == "python" else words[0]
            if re.fullmatch(r"(benchmarks|examples)/\S+", script):
                assert (ROOT / script).is_file(), where


# The site


def build(root: Path, folder: Path) -> subprocess.CompletedProcess:
    """`make docs` into another folder. Not with --quiet, which hides the faults from --strict."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # it is not about this site
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0 and "Documentation built" in done.stderr, done.stderr
    return folder


def test_dead_links_are_found(tmp_path):
    for name in ("docs", "examples", "results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for page in tmp_path.glob("docs/api*.md"):  # without the docstrings, which take most of the time
        page.write_text(re.sub(r"^:::.*\n(    .*\n)*", "", page.read_text(), flags=re.M))
    faults = {
        "[a](faq.md#nowhere)": "contains a link 'faq.md#nowhere', but there is no such anchor on this page",
        "[b](missing.md)": "contains a link 'missing.md', but the target is not found",
        "![c](plots/missing.svg)": "contains a link 'plots/missing.svg', but the target is not found",
        "[d](../results/missing.json)": "contains a link 'repository/results/missing.json', but the target",
    }
    with (tmp_path / "docs/faq.md").open("a") as page:
        page.write("\n" + " ".join(faults))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "Aborted with 4 warnings" in done.stdout, done.stdout
    assert [text for text in faults.values() if text not in done.stderr] == []


def test_site_builds_without_a_warning_and_asks_the_network_for_nothing(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img|source|iframe)\b[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert loaded == [], page.name
    for sheet in site.glob("assets/stylesheets/*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?https?:", sheet.read_text()), sheet.name


def test_pages_render_what_they_say(site):
    for page in PAGES[1:]:
        text = (site / f"{page.stem}.html").read_text()
        article = re.sub(
            r"<(pre|code)\b.*?</\1>", "", text[text.index("<article") : text.index("</article")], flags=re.S
        )
        for raw in ("<p>- ", "<p>| ", "\n- ", "\n| ", "$$", "\\frac", "\\log", "](", "merror"):
            assert raw not in article, f"{page.name}: {raw!r} is not rendered"


@pytest.mark.parametrize("module", PUBLIC)
def test_api_pages_have_every_public_name(site, module):
    inventory = (site / "objects.inv").read_bytes()
    listed = set(re.findall(r"^(\S+) py:", zlib.decompress(inventory.split(b"\n", 4)[4]).decode(), re.M))
    public = importlib.import_module(module)
    missing = [n for n in public.__all__ if not listed & {f"{module}.{n}", f"{module}.{n}.{n}"}]
    assert missing == []


def test_links_of_the_readme_and_its_like_lead_somewhere(site):
    for page in (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), f"{page.name}: {target}"
            if anchor:
                assert f'id="{anchor}"' in (site / f"{Path(path).stem}.html").read_text(), f"{page.name}: {target}"
