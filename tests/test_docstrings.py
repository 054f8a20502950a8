"""Every public function and class says what it computes, from where, in which units, and shows an example that runs."""
# SPDX-License-Identifier: MIT

import doctest
import inspect
import io
import math
import re

import pytest
import torch

import hrel_ext

PUBLIC = [name for name in hrel_ext.__all__ if callable(getattr(hrel_ext, name))]
NO_QUANTITY = {"build_info"}  # returns no quantity, which could have a unit or a source
UNIT = re.compile(r"\b(bits|units? of|without unit|ms|bytes)\b")


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_its_parts(name):
    public = getattr(hrel_ext, name)
    text = inspect.getdoc(public)
    assert text.split("\n")[0].endswith("."), "the first line is a sentence"
    assert re.search(r"^Example:\n +>>> ", text, re.M)
    if inspect.isfunction(public):
        assert re.search(r"^Returns:$", text, re.M)
        assert (re.search(r"^Args:$", text, re.M) is not None) == bool(inspect.signature(public).parameters)
    if name not in NO_QUANTITY:
        assert re.search(r"^Source: \S", text, re.M)
        assert UNIT.search(text)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name):
    public = getattr(hrel_ext, name)
    names = {"hrel_ext": hrel_ext, "math": math, "torch": torch}
    found = doctest.DocTestFinder().find(public, name, module=inspect.getmodule(public), globs=names)
    examples = [test for test in found if test.examples]
    assert name in [test.name for test in examples]
    for test in examples:
        said = io.StringIO()
        assert doctest.DocTestRunner(verbose=False).run(test, out=said.write).failed == 0, said.getvalue()


def test_a_wrong_example_is_found():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    (test,) = doctest.DocTestFinder().find(wrong, "wrong", globs={})
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1
