"""Every method that trains beside its floors: same model, same data, equal epochs, one table.

python benchmarks/methods.py CHECKPOINT DATA --epochs 1 --results methods.jsonl [--only str,grda] [--jobs 2] [--print]

Each row is a run of `prunecli prune` in a process of its own, with its share of the processors. Rows that are in the
results already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SGD = {"lr": 0.05, "weight_decay": 5e-4}
PLAIN = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
BLIND: Row = {"fraction": 0.55, "pretext": {"lr": 0.05, "validation": 0.0}}  # few rounds


def weights(title: str, train: Row, budget: Row | None = None, **method: Any) -> dict[str, Row]:
    """A row for each sparsity."""
    return {
        f"{title} {share:.0%}": {
            "method": {"structure": "weight", **method},
            "budget": {"sparsity": share, **(budget or {})},
            "train": train,
        }
        for share in (0.8, 0.9, 0.95, 0.98)
    }


def channels(title: str, train: Row, extra: Row | None = None, **method: Any) -> dict[str, Row]:
    """A row for 50 and for 70 % fewer FLOPs."""
    return {
        f"{title} -{share:.0%}": {"method": method, "budget": {"flops": 1 - share}, "train": train, **(extra or {})}
        for share in (0.5, 0.7)
    }


ROWS: dict[str, Row] = {
    "dense twin of grda": {"train": PLAIN},
    **weights("random", SGD, name="random"),
    **weights("magnitude", SGD, name="magnitude"),
    **weights("gradual magnitude", SGD, {"iterative": {"schedule": "cubic"}}, name="magnitude"),
    **weights("str", SGD, name="str"),
    **weights("grda", PLAIN, name="grda"),
    **weights("gumbel", SGD, name="gumbel"),
    **weights("selfsup rotation", SGD, name="selfsup", objective="rotation", **BLIND),
    **weights("selfsup labels", SGD, name="selfsup", objective="labels", **BLIND),
    **channels("random", SGD, name="random"),
    **channels("magnitude", SGD, name="magnitude"),
    **channels("magnitude recovered", SGD, {"recover": {}}, name="magnitude"),
    **channels("str", SGD, name="str", structure="channel", s_init=-4, ramp=0.5),
    **channels("gumbel", SGD, name="gumbel", structure="channel"),
    **channels("ftwt", SGD, name="ftwt"),
}


def recipe(row: Row, data: str, epochs: int) -> Row:
    """The whole recipe of a row; what it says of parts of the epochs is made of their number."""
    method, budget = dict(row.get("method", {})), dict(row.get("budget", {}))
    if "iterative" in budget:  # as many steps as epochs, two at least: then each trains for a half
        budget["iterative"] = {**budget["iterative"], "steps": max(2, epochs)}
    if "pretext" in method:  # in each round
        method["pretext"] = {**method["pretext"], "epochs": epochs / 4}
    train = {"batch_size": 128, **row["train"], "epochs": epochs}
    given = {name: part for name, part in (("method", method), ("budget", budget)) if part}
    return {**row, **given, "version": 1, "data": data, "train": train}


def run(name: str, row: Row, asked: argparse.Namespace) -> Row:
    """One row in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(recipe(row, asked.data, asked.epochs)))  # JSON is YAML
        verb = "prune" if "method" in row else "finetune"
        command = [sys.executable, "-m", "prunecli", verb, asked.checkpoint, "--recipe", str(path)]
        out = ["--data", asked.data, "-o", str(Path(folder) / "out.safetensors"), "--json", "-q"]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // asked.jobs))}
        env = {**os.environ, **threads}
        done = subprocess.run([*command, *out], capture_output=True, text=True, check=False, env=env)
    facts = json.loads(done.stdout or "{}")
    return {"row": name, "epochs": asked.epochs, **facts}


def table(results: list[Row]) -> str:
    """All results as Markdown."""
    lines = [
        "| method | asked | met | params | non-zero | FLOPs | bytes | top-1 before | after | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in results:
        if "error" in found or "after" not in found:
            lines.append(f"| {found['row']} | {found.get('error', {}).get('problem', 'failed')} |")
            continue
        before, after, budget = found["before"], found["after"], found.get("budget")
        asked = f"{budget['unit']} {budget['asked']:.1%} | {budget['met']:.2%}" if budget else "- | -"
        shares = " | ".join(f"{after[k] / before[k]:.1%}" for k in ("params", "nonzero", "flops", "bytes"))
        lines.append(
            f"| {found['row']} | {asked} | {shares} "
            f"| {before['accuracy']:.2%} | {after['accuracy']:.2%} | {found['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--only", default="", help="names that rows start with, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="rows that run beside each other")
    parser.add_argument("--print", action="store_true", help="run nothing")
    asked = parser.parse_args()
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    done = {(found["row"], found["epochs"]) for found in known}
    wanted = [] if asked.print else [name for name in ROWS if name.startswith(tuple(asked.only.split(",")))]
    with ThreadPoolExecutor(asked.jobs) as pool:
        runs = [pool.submit(run, name, ROWS[name], asked) for name in wanted if (name, asked.epochs) not in done]
        for row in as_completed(runs):
            known.append(row.result())
            print(table(known[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            with asked.results.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
    import torch

    order = {name: number for number, name in enumerate(ROWS)}
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, seed 0, {asked.checkpoint}")
    print(table(sorted(known, key=lambda found: order.get(found["row"], len(order)))))


if __name__ == "__main__":
    main()
