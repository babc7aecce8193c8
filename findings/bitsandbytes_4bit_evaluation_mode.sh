#!/usr/bin/env bash
# One would guess: calling a 4-bit layer of bitsandbytes in evaluation mode changes nothing about it, as with any module.
# What happens on a CPU with AVX512-BF16 (AMD Zen 4, Intel Sapphire Rapids and later): the first call in evaluation mode
# repacks the weight for good, train() does not undo that, and the layer then computes in bfloat16 without autograd. A
# layer without bias silently passes no gradient to its input, so only the paths around it learn; a layer with bias
# raises. The scales that state_dict() gives are no longer those that were loaded. On other CPUs nothing is repacked.
# With `layer.support_avx512bf16_for_cpu = False` after loading, output, gradient and scales are right.
# bitsandbytes 0.50.2, torch 2.13.0, 2026-11-30. Exits 1 if that changes, and 77 on a CPU that cannot show it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
cat > "$folder/show.py" <<'PYTHON'
import sys
from importlib.metadata import version

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import has_avx512bf16

print(*(f"{package} {version(package)}" for package in ("torch", "bitsandbytes")))
if not has_avx512bf16():
    print("this CPU has no AVX512-BF16: nothing is repacked here")
    sys.exit(77)


def gradient(bias, turned_off):
    """The gradient of sum(layer(x)) with respect to x after a call in evaluation mode, and what it should be."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=bias, quant_type="nf4")
    layer = layer.to("cpu").requires_grad_(False)
    if turned_off:
        layer.support_avx512bf16_for_cpu = False
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).sum(0).expand(2, 64)
    with torch.no_grad():
        layer.eval()(torch.randn(2, 64))
    x = torch.randn(2, 64, requires_grad=True)
    try:
        (layer.train()(x).sum() + 0 * x.sum()).backward()  # the second term stands for a residual connection
        got = "right" if torch.allclose(x.grad, expected, atol=1e-4) else "zero" if not x.grad.any() else "wrong"
    except RuntimeError as error:
        got = type(error).__name__
    now = layer.state_dict()
    scales = "the same" if all(torch.equal(now[name], saved[name]) for name in saved) else "changed"
    print(f"bias {bias!s:5}  turned off {turned_off!s:5}  gradient {got:12}  saved scales {scales}")
    return got, scales


found = [gradient(bias, turned_off) for turned_off in (False, True) for bias in (False, True)]
right = ("right", "the same")
sys.exit(found != [("zero", "changed"), ("RuntimeError", "changed"), right, right])
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py"
