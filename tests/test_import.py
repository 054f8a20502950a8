"""What importing hrel_ext needs and loads, seen in fresh interpreters."""
# SPDX-License-Identifier: MIT

import subprocess
import sys

OPTIONAL = (
    "torchvision torch_pruning typer rich matplotlib sklearn accelerate safetensors jinja2 onnx onnxruntime onnxscript "
    "tensorboard lightning transformers"
).split()


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_import_loads_no_optional_dependency():
    done = run(f"import sys, hrel_ext, hrel_ext.collect; print([m for m in {OPTIONAL} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_missing_native_module_is_one_error_that_names_the_build_command():
    code = "import sys; sys.modules['hrel_ext._C'] = None; import hrel_ext"
    done = run(code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: hrel_ext is not built") and "pip install ." in last


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['torch_pruning'] = None; import hrel_ext.pruning"
    assert "pip install 'hrel_ext[prune]'" in run(code).stderr.strip().splitlines()[-1]
    code = "import sys; sys.modules['typer'] = None; import hrel_ext.cli"
    assert "pip install 'hrel_ext[cli" in run(code).stderr.strip().splitlines()[-1]


def test_load_pruned_is_fetched_only_when_it_is_asked_for():
    code = """if True:
        import sys, hrel_ext
        assert "load_pruned" in dir(hrel_ext) and "hrel_ext.pruning" not in sys.modules
        sys.modules["torch_pruning"] = None
        try:
            hrel_ext.load_pruned
        except ImportError as error:
            print(error)
        hrel_ext.load_prund
    """
    done = run(code)
    assert done.stdout == "hrel_ext.pruning needs torch_pruning: pip install 'hrel_ext[prune]'\n"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("AttributeError: module 'hrel_ext' has no attribute 'load_prund'")
