"""What the site does to a page: Markdown as GitHub reads it, formulas as MathML, files of the repository beside it.

The pages are written for the site and for a reader of the repository alike. The differences are made up for here.
"""
# SPDX-License-Identifier: MIT

import html
import re
from importlib.metadata import distribution
from pathlib import Path

from griffe import Extension, Object
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MATH_FONT = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")  # not every machine has one
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")  # a link to a file that is not a page
LIST_OR_TABLE = re.compile(r"(?:- |\d+\. |\|)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
PICTURE = re.compile(r'(<img [^>]*src="(plots/[^"]*)"[^>]*>)')
NAME = re.compile(r"<code>(hrel_ext(?:\.\w+)+)</code>")
SECTION = re.compile(r"( *)(Args|Attributes|Raises|Warns):")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Files of the repository that a page links to come with the site."""
    for page in files.documentation_pages():
        for name in OUTSIDE.findall(page.content_string):
            if (ROOT / name).is_file() and f"repository/{name}" not in files.src_uris:
                files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "math.ttf", abs_src_path=str(MATH_FONT)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lists, tables and displayed formulas may follow a line of text at once; Python-Markdown wants an empty line."""
    parts = re.split(r"(^```.*?^```$)", OUTSIDE.sub(r"](repository/\1", markdown), flags=re.M | re.S)
    for i in range(0, len(parts), 2):  # those between the fenced blocks
        text = re.sub(r"(?<!\n)(\n?)\$\$(.+?)\$\$[ ]*\n?", r"\n\n$$\2$$\n\n", parts[i], flags=re.S)
        lines = ("\n" * (i > 0) + text).split("\n")
        for before, at in zip(lines, range(1, len(lines)), strict=False):
            start, old = LIST_OR_TABLE.match(lines[at]), LIST_OR_TABLE.match(before)
            if start and before.strip() and not before[0].isspace() and (old and old[0][0]) != start[0][0]:
                lines[at] = "\n" + lines[at]
        parts[i] = "\n".join(lines)
    return "".join(parts)


def on_page_content(content: str, **_: object) -> str:
    """Formulas become MathML, which browsers draw by themselves; names lead to the API; a picture opens alone."""

    def mathml(found: re.Match[str]) -> str:
        formula = convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")
        return formula.replace(r"\_", "_")  # of \texttt

    def link(found: re.Match[str]) -> str:
        name, last = found[1], found[1].split(".")[-1]
        module = ROOT / "hrel_ext" / f"{last}.py"  # a function with the name of its module has an entry in there
        target = f"{name}.{last}" if name == f"hrel_ext.{last}" and module.exists() else name
        return f'<autoref identifier="{target}" optional>{found[0]}</autoref>'

    content = NAME.sub(link, FORMULA.sub(mathml, content))
    return PICTURE.sub(r'<a href="\2">\1</a>', content)


class Docstrings(Extension):
    """Docstrings as griffe reads them: it knows neither "x, y: as elsewhere" nor an error told on several lines."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is None:
            return
        lines, inside = [], None  # the indentation of the items of a section
        for line in obj.docstring.value.split("\n"):
            section = SECTION.fullmatch(line)
            indent = len(line) - len(line.lstrip())
            if section:
                inside, item = len(section[1]) + 4, None
            elif inside is not None and line.strip() and indent < inside:
                inside = None
            elif inside == indent:
                item = re.fullmatch(r" *(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line)
                if item is None:
                    line = "    " + line  # goes on from the line before
                elif "Error" not in item[1]:
                    line = "\n".join(f"{' ' * indent}{name}: {item[2]}" for name in item[1].split(", "))
            lines.append(re.sub(r"^( *)Example:$", r"\1Examples:", line))
        obj.docstring.value = "\n".join(lines)
