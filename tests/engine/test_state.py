"""What a trainer checkpoint holds."""

from __future__ import annotations

import torch

from medmae.engine.state import collect, restore


def test_a_tensor_with_several_names_is_in_a_checkpoint_once() -> None:
    def aliased() -> torch.nn.Module:
        part = torch.nn.Linear(3, 3)
        return torch.nn.ModuleDict({"one": part, "other": part})

    source, target = aliased(), aliased()
    optimizer = torch.optim.AdamW(source.parameters())
    source["one"](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = collect(source, optimizer, None)
    assert set(state["method"]) == {"one.weight", "one.bias"}
    restore(state, target, torch.optim.AdamW(target.parameters()), None)
    assert torch.equal(target["other"].weight, source["one"].weight)
