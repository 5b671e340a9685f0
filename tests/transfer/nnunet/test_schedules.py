"""Learning rates by epoch and by depth."""

from __future__ import annotations

import pytest
import torch
from small_unets import architecture, network
from torch import nn

from medmae.core.errors import UsageError
from medmae.transfer.nnunet.schedules import GroupedSchedule, course, groups, level, optimizer


def test_sawtooth_warms_up_the_decoder_then_everything_then_decays() -> None:
    found = course("sawtooth", epochs=1000)
    assert (found.alone, found.together, found.peak) == (50, 50, 1e-3)
    assert [found.rate(epoch, encoder=True) for epoch in (0, 49)] == [0.0, 0.0]
    assert found.rate(0, encoder=False) == pytest.approx(1e-3 / 50)
    assert found.rate(49, encoder=False) == found.rate(99, encoder=True) == pytest.approx(1e-3)
    assert found.rate(50, encoder=True) == found.rate(50, encoder=False) == pytest.approx(1e-3 / 50)
    assert found.rate(100, encoder=True) == pytest.approx(1e-3)
    assert found.rate(550, encoder=True) == pytest.approx(1e-3 * 0.5**0.9)
    assert 0 < found.rate(999, encoder=True) < found.rate(998, encoder=True)


def test_warmup_is_one_ramp_of_everything() -> None:
    found = course("warmup", epochs=1000)
    assert found.rate(0, encoder=True) == found.rate(0, encoder=False) == pytest.approx(1e-4 / 50)
    assert found.rate(49, encoder=True) == found.rate(50, encoder=True) == pytest.approx(1e-4)


@pytest.mark.parametrize("schedule", ["sawtooth", "warmup"])
@pytest.mark.parametrize("epochs", [1, 2, 4, 7, 100])
def test_every_epoch_of_a_short_training_has_a_rate(schedule: str, epochs: int) -> None:
    found = course(schedule, epochs=epochs)
    rates = [found.rate(epoch, encoder=False) for epoch in range(epochs)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(found.peak)
    assert found.rate(epochs - 1, encoder=True) > 0
    assert found.alone <= epochs // 4


def test_a_training_that_ends_in_its_warmup_is_refused() -> None:
    assert course("sawtooth", epochs=4, warmup=2).rate(3, encoder=True) == pytest.approx(1e-3)
    for schedule, warmup in (("sawtooth", 3), ("warmup", 6)):
        with pytest.raises(UsageError, match=r"5 epochs end before .* take 6: give more --epochs"):
            course(schedule, epochs=5, warmup=warmup)
    assert course("scratch", epochs=5, warmup=50).alone == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.stem.convs.0.conv.weight", 0),
        ("encoder.stages.0.blocks.1.conv1.conv.weight", 1),
        ("encoder.stages.4.blocks.1.conv1.conv.weight", 5),
        ("encoder.embed.linear.t1n.weight", 0),
        ("encoder.prefix_tokens", 0),
        ("encoder.blocks.0.attn.qkv.weight", 1),
        ("encoder.blocks.11.mlp.fc1.bias", 12),
        ("encoder.norm.weight", None),
        ("decoder.stages.2.convs.0.conv.weight", None),
    ],
)
def test_how_deep_a_parameter_sits(name: str, expected: int | None) -> None:
    assert level(name) == expected


@pytest.mark.parametrize("spare", [False, True])
def test_groups_hold_every_parameter_once(spare: bool) -> None:
    net = network(architecture(3))
    found = groups(net, decay=0.5, weight_decay=0.1, spare=spare)
    ids = [id(value) for group in found for value in group["params"]]
    assert sorted(ids) == sorted(id(value) for value in net.parameters())
    assert len(ids) == len(set(ids))
    by_name = {id(v): group for group in found for v in group["params"]}
    parameters = dict(net.named_parameters())
    assert by_name[id(parameters["encoder.stem.convs.0.conv.weight"])]["factor"] == 0.5**4
    assert by_name[id(parameters["encoder.stages.2.blocks.0.conv1.conv.weight"])]["factor"] == 0.5
    head = by_name[id(parameters["decoder.seg_layers.0.bias"])]
    assert (head["factor"], head["encoder"]) == (1.0, False)
    assert head["weight_decay"] == (0.0 if spare else 0.1)
    assert not found[0]["encoder"]  # nnU-Net's log shows the rate of the first group


class Two(nn.Module):
    """An encoder and a decoder of one weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def test_the_encoder_waits_and_collects_no_momentum() -> None:
    net = Two()
    lengths = course("sawtooth", epochs=8, warmup=2)
    members = groups(net, weight_decay=0.1, spare=False)
    found = optimizer("sawtooth", members, rate=lengths.peak)
    schedule = GroupedSchedule(found, lengths)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for epoch in range(3):
        schedule.step(epoch)
        found.zero_grad()
        net(torch.ones(1, 2)).square().sum().backward()
        assert net.encoder.weight.grad is not None
        found.step()
        waits = epoch < 2
        assert torch.equal(net.encoder.weight, before["encoder.weight"]) == waits
        assert (net.encoder.weight in found.state) != waits
        assert not torch.equal(net.decoder.weight, before["decoder.weight"])


def test_a_step_sets_every_group() -> None:
    net = network(architecture(3))
    lengths = course("warmup", epochs=10, warmup=2, peak=1.0)
    found = optimizer("warmup", groups(net, decay=0.5, weight_decay=0.1, spare=True), rate=1.0)
    assert isinstance(found, torch.optim.AdamW)
    schedule = GroupedSchedule(found, lengths)
    schedule.step(1)
    assert schedule.get_last_lr() == [group["factor"] for group in found.param_groups]
    schedule.step(0)
    assert max(schedule.get_last_lr()) == 0.5
