"""``train.compile`` with the default method: plans stay out of the graph, so the whole step compiles and agrees."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: the shape checks of the tests cannot be traced.
PROGRAM = """
import torch
from medmae.find import find

method = find("bm_mae").build(scale="test")
compiled = torch.compile(method)
for step in range(3):
    images = {name: torch.randn(2, 1, 32, 32, 32) for name in method.sequences}
    present = torch.tensor([[True, True, True, True], [True, False, True, True]])
    batch = {**images, "present": present, "key": torch.tensor([step, step + 100])}
    plain = method(batch)["reconstruction"]
    plain.backward()
    wanted = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    method.zero_grad()
    loss = compiled(batch)["reconstruction"]
    loss.backward()
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    found = [p.grad for p in method.parameters() if p.grad is not None]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    method.zero_grad()
print("agrees")
"""


@pytest.mark.slow
def test_the_default_method_compiles():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agrees" in done.stdout
