"""Writes the model of every node test of the `onnx` package into a folder: node_models.py FOLDER.

The wheel holds these tests as Python code, and only some others as files.
"""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")  # Some tests divide by zero on purpose.
from onnx.backend.test.case.node import collect_testcases  # noqa: E402

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
cases = [c for c in collect_testcases(None) if c.model is not None]
for case in cases:
    (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
print(f"{len(cases)} models in {folder}")
