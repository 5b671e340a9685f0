"""Heads that answer for every voxel: any subset through one network, missing leaves no trace, all kinds of encoders."""

from __future__ import annotations

import pytest
import torch

from medmae.core.errors import UsageError
from medmae.core.tokens import Tokens
from medmae.find import find
from medmae.testing import example_batch, mixed_batch
from medmae.transfer.building import build
from medmae.transfer.dense_windows import dense_over_windows
from medmae.transfer.finetuned import Finetuned
from medmae.transfer.segments import LABEL

ENCODERS = ("bm_mae", "eva_mae", "resenc_mae", "spark3d")
OBJECTIVE = {"kind": "segments", "names": ["whole", "core"], "values": [[1, 2], [2]]}


def model(name: str = "bm_mae", *, base: dict | None = None, **more) -> Finetuned:
    torch.manual_seed(0)
    head = {"kind": "decoder", "features": 4, **more.pop("head", {})}
    recipe = {**find(name).recipe(scale="test"), **(base or {})}
    backbone = {"method": name, "recipe": recipe, "layer": None}
    made = build({"backbone": backbone, "head": head, "objective": OBJECTIVE, **more})
    for layer in made.head.modules():  # scores that start at one value would hide every difference
        if isinstance(layer, torch.nn.Conv3d):
            torch.nn.init.normal_(layer.weight, std=0.1)
    return made


def batch_of(method: Finetuned, *, mixed: bool = False) -> dict[str, torch.Tensor]:
    found = (mixed_batch if mixed else example_batch)(method.backbone)
    first = found[method.sequences[0]]
    return {**found, LABEL: torch.randint(0, 3, first.shape)}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_noise_in_a_missing_sequence_changes_nothing(name: str) -> None:
    method = model(name).eval()
    batch = batch_of(method)
    present = torch.ones(len(batch["key"]), len(method.sequences), dtype=torch.bool)
    present[:, 1] = False
    lacking = {**batch, "present": present}
    noisy = {**lacking, method.sequences[1]: 100 * torch.randn_like(batch[method.sequences[1]])}
    found = method.answer(lacking)
    torch.testing.assert_close(found, method.answer(noisy), rtol=0, atol=0)
    assert float((found - method.answer(batch)).abs().max()) > 1e-3  # while what it says when present does count


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_ragged_batch_answers_as_each_sample_alone(name: str) -> None:
    method = model(name).eval()
    batch = batch_of(method, mixed=True)
    together = method.predict(batch)["probability"]
    assert together.shape == (3, 2, *batch[method.sequences[0]].shape[2:])
    for row in range(3):
        alone = method.predict({key: value[row : row + 1] for key, value in batch.items()})["probability"]
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae"])
@torch.no_grad()
def test_every_subset_has_an_answer_of_the_same_scale(name: str) -> None:
    method = model(name).eval()
    batch = {key: value[:1] for key, value in batch_of(method).items()}
    spread = []
    for word in range(1, 2 ** len(method.sequences)):
        present = torch.tensor([[bool(word >> j & 1) for j in range(len(method.sequences))]])
        found = method.answer({**batch, "present": present})
        assert bool(found.isfinite().all())
        spread.append(float(found.std()))
    assert max(spread) < 2 * min(spread), spread


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_reaches_encoder_and_head(name: str) -> None:
    method = model(name, head={"deep_supervision": True}).train()
    with torch.no_grad():
        for parameter_name, values in method.named_parameters():
            if parameter_name.endswith("norm.weight"):
                values.fill_(1.0)  # the last norm of a residual block starts at zero, which stops what is before it
    torch.stack(list(method(batch_of(method)).values())).sum().backward()
    for part in (method.backbone.encoder, method.head):
        got = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters()]
        assert sum(got) > 0.7 * len(got)


def test_deep_supervision_is_for_training_only() -> None:
    method = model(head={"deep_supervision": True})
    batch = batch_of(method)
    scores = method.train().answer(batch)
    assert isinstance(scores, list)
    assert len(scores) == 3
    assert isinstance(method.eval().answer(batch), torch.Tensor)


def test_a_head_starts_from_the_prevalence() -> None:
    torch.manual_seed(0)
    recipe = {
        "backbone": {"method": "bm_mae", "recipe": find("bm_mae").recipe(scale="test"), "layer": None},
        "head": {"kind": "decoder", "features": 4},
        "objective": {**OBJECTIVE, "prevalence": [0.1, 0.01]},
    }
    method = build(recipe).eval()
    with torch.no_grad():
        found = method.predict(batch_of(method))["probability"].mean((0, 2, 3, 4))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.01]), rtol=0.2, atol=0)


@torch.no_grad()
def test_windows_give_what_one_pass_gives_where_one_window_is_enough() -> None:
    method = model().eval()
    batch = {key: value[:1] for key, value in batch_of(method).items()}
    images = {name: batch[name][0, 0] for name in method.sequences[:2]}
    inside = torch.ones(images[method.sequences[0]].shape, dtype=torch.bool)
    options = {
        "names": method.sequences, "size": method.backbone.tokenizer.grid.size, "spacing": (1, 1, 1),
        "device": torch.device("cpu"),
    }  # fmt: skip
    found = dense_over_windows(method.answer, images, inside, **options)
    present = torch.tensor([[name in images for name in method.sequences]])
    alone = method.answer({**batch, "foreground": inside[None, None], "spacing": torch.ones(1, 3), "present": present})
    torch.testing.assert_close(found, alone[0], rtol=0, atol=1e-4)
    larger = {name: torch.nn.functional.pad(image, (0, 9, 3, 0, 0, 1)) for name, image in images.items()}
    shape = next(iter(larger.values())).shape
    whole = dense_over_windows(method.answer, larger, torch.ones(shape, dtype=torch.bool), batch_size=3, **options)
    assert whole.shape == (2, *shape)
    assert bool(whole.isfinite().all())
    with pytest.raises(UsageError, match="overlap"):
        dense_over_windows(method.answer, images, inside, overlap=1.0, **options)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"features": 0}, "must be a count"),
        ({"dropout": 1.0}, "below 1"),
        ({"wings": 2}, "cannot be built"),
        ({"kind": "published", "sequences": ["t1n"]}, "patches of"),
    ],
)
def test_heads_that_cannot_be_meant(head: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model(head=head)


# --- the published head -----------------------------------------------------------------------------------------------

BIG = {"size": [32, 32, 32], "patch": [16, 16, 16], "depth": 4}


def published(*sequences: str) -> Finetuned:
    return model(base=BIG, head={"kind": "published", "features": 4, "sequences": list(sequences)})


def test_the_published_decoder_is_monais() -> None:
    """The same weights in MONAI's UNETR, whose transformer is replaced by ours, give the same numbers."""
    from monai.networks.nets.unetr import UNETR

    method = published("t1c", "t2f").eval()
    encoder = method.backbone.encoder
    theirs = UNETR(
        2, 2, (32, 32, 32), feature_size=4, hidden_size=encoder.width, mlp_dim=8, num_heads=2, norm_name="instance"
    ).eval()
    names = {name for name, _ in theirs.named_parameters() if not name.startswith("vit.")}
    assert names == {name for name, _ in method.head.named_parameters()}
    theirs.load_state_dict(method.head.state_dict(), strict=False)
    batch = {key: value[:1] for key, value in batch_of(method).items()}
    batch["present"] = torch.tensor([[name in ("t1c", "t2f") for name in method.sequences]])
    features = method.backbone(batch)
    tokens = features.encoded.tokens
    assert features.encoded.prefix.shape[1] == 0  # no [CLS]

    def mean(values: torch.Tensor) -> torch.Tensor:
        """Over the two sequences at each place; eight places in all."""
        exists = Tokens(tokens.layout, values).layout.exists
        return values[exists].view(1, 2, 8, -1).mean(1)

    hidden = [torch.zeros(1)] * 12
    for index, tap in zip((3, 6, 9), (1, 2, 3), strict=True):
        hidden[index] = mean(features.encoded.taps[tap])
    theirs.vit.forward = lambda x: (mean(tokens.content), hidden)
    with torch.no_grad():
        images = torch.cat([batch["t1c"], batch["t2f"]], 1)
        torch.testing.assert_close(method.answer(batch), theirs(images), rtol=0, atol=1e-5)


def test_a_published_head_refuses_sequences_the_model_does_not_know() -> None:
    with pytest.raises(UsageError, match="the model knows"):
        published("ct")
