"""prunecli export"""

from __future__ import annotations

from prunecli.cli import options
from prunecli.cli.out import Out


def export(
    model: options.Model,
    output: options.Output,
    arch: options.Arch = None,
    input: options.Input = None,
    key: options.Key = None,
    trust: options.Trust = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Hand a model to a runtime: OUT ends in .onnx, .pt2, .ts, .safetensors or .pth."""
    out = Out(as_json=json, quiet=quiet)
    with out.failures():
        options.inputs_of(input)
        from prunecli.pipeline.export import export as run
        from prunecli.render.terminal import export_report

        facts = run(model, output, options.opening(arch, input, key, trust))
        out.result(facts, export_report(facts), facts.output)
