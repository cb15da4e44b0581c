"""What an import costs: no framework is loaded before it is used, and none is needed that is not a core dependency."""

from __future__ import annotations

import json
import subprocess
import sys

FRAMEWORKS = ("torch", "tensorflow", "coremltools", "onnxruntime", "nncf", "ai_edge_litert", "onnxscript", "tensorrt")
EXTRAS = ("torch", "torch_pruning", "tensorflow", "coremltools", "nncf", "onnxscript", "sklearn", "scipy", "mlflow")

LOADED = f"""
import json, sys
print(json.dumps([name for name in {FRAMEWORKS} if name in sys.modules]))
"""

HELP = """
import sys
from contextlib import redirect_stdout
from io import StringIO
from edgeopt.cli import main
sys.argv = ["edgeopt", "--help"]
shown = StringIO()
try:
    with redirect_stdout(shown):
        main()
except SystemExit as end:
    assert not end.code, end.code
assert "convert" in shown.getvalue()
"""

EVERY_MODULE = f"""
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Absent())
import edgeopt
modules = [module.name for module in pkgutil.walk_packages(edgeopt.__path__, "edgeopt.")]
assert len(modules) > 20, modules
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""


def run(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_edgeopt_loads_no_framework():
    assert json.loads(run("import edgeopt\n" + LOADED)) == []


def test_help_loads_no_framework():
    assert json.loads(run(HELP + LOADED)) == []


def test_every_module_imports_without_any_framework_and_loads_none():
    assert json.loads(run(EVERY_MODULE + LOADED)) == []
