"""A coverage-guided fuzz target for the readers of files, by atheris (libFuzzer).

    python tests/fuzz_readers.py -max_total_time=600 [CORPUS]

Each of the readers of `test_fuzz_readers.py` gets the bytes as its file; the first byte chooses it. It must answer them
or refuse them by a ValueError. Anything else is a fault: another error, a hang, memory for a claim, a pickle, a file
opened outside its folder.
"""
# SPDX-License-Identifier: MIT

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hrel_ext"]):
    from test_fuzz_readers import READERS, make

FOLDER = Path(tempfile.mkdtemp(prefix="hrel-fuzz-"))
make(FOLDER)
WHOLE = {changed: (FOLDER / changed).read_bytes() for changed, _, _ in READERS.values()}
NAMES = sorted(READERS)
reading = False


def audit(event: str, arguments: tuple[object, ...]) -> None:
    """Python tells of every file that it opens, modules such as codecs among them, and of every name in a pickle."""
    if not reading:
        return
    if event == "pickle.find_class":
        raise RuntimeError(f"a pickle is loaded: {arguments}")
    if event == "open":
        path = Path(str(arguments[0])).resolve()
        if path.suffix not in (".py", ".pyc") and not path.is_relative_to(FOLDER):
            raise RuntimeError(f"a file outside the folder is opened: {path}")


def read(data: bytes) -> None:
    global reading
    name, content = NAMES[data[0] % len(NAMES)], data[1:]
    changed, folder, reader = READERS[name]
    (FOLDER / changed).write_bytes(content)
    if name == "weights":  # let them pass the hash
        plan = json.loads(WHOLE["pruned/plan.json"])
        plan["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        (FOLDER / "pruned/plan.json").write_text(json.dumps(plan))
    reading = True
    try:
        reader(FOLDER / folder)
    except (ValueError, FileNotFoundError) as error:  # the latter of a plan that names another file
        if not str(error):
            raise
    finally:
        reading = False
        for other, whole in WHOLE.items():
            (FOLDER / other).write_bytes(whole)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's mutations; of a safetensors file every other time those of its header, whose length then fits."""
    name, content = NAMES[data[0] % len(NAMES)] if data else "", data[1:]
    start = 8 + int.from_bytes(content[:8], "little")
    if name in ("scores", "plane", "weights") and seed % 2 and 8 < start <= len(content):
        header = atheris.Mutate(content[8:start], max(1, max_size - 9 - len(content) + start))
        return data[:1] + len(header).to_bytes(8, "little") + header + content[start:]
    return atheris.Mutate(data, max_size)


def main() -> None:
    corpus = Path(tempfile.mkdtemp(prefix="hrel-corpus-"))
    for number, name in enumerate(NAMES):  # also opens once what is opened only once, such as modules
        (corpus / name).write_bytes(bytes([number]) + WHOLE[READERS[name][0]])
        assert READERS[name][2](FOLDER / READERS[name][1]) is not None
    sys.addaudithook(audit)
    # The packages alone take more than libFuzzer's limit of 2 GiB in some environments.
    options = ["-timeout=100", "-max_len=20000", "-rss_limit_mb=4096", *sys.argv[1:], str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda data: read(data or b"\0"), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
