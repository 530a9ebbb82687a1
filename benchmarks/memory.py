"""Peak memory of opening a state dict and finding its channels, against the size of the file.

python benchmarks/memory.py [NAME ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from prunecli.arch.registry import build
from prunecli.arch.spec import parse

NAMES = ["torchvision:vit_h_14", "torchvision:regnet_y_128gf"]
TRACE = """
import re, sys
import scipy.sparse.csgraph, torchvision
from pathlib import Path
from prunecli.graph.channels import trace
from prunecli.model import Opening, open_model
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
model = open_model(sys.argv[1], Opening(arch=sys.argv[2]))
trace(model.module, model.example)
print(before, peak())
"""


def main() -> None:
    """One row for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    names = parser.parse_args().names
    print(f"torch {torch.__version__}")
    print("| network | file | libraries alone | peak with the model | growth / file | peak / file |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            torch.save(build(parse(name)).state_dict(), path)
            size = path.stat().st_size
            command = [sys.executable, "-c", TRACE, str(path), name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, peak = map(int, text.split())
        cells = (f"{size / 1e9:.2f} GB", f"{before / 1e9:.2f} GB", f"{peak / 1e9:.2f} GB")
        print(f"| {name} | {' | '.join(cells)} | {(peak - before) / size:.2f} | {peak / size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
