"""The configurations that ``bm_mae_step.py`` compares, and the comparisons it draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True)
class Setup:
    """One configuration.

    Attributes:
        key: short name, used in the attribution.
        title: what the table says.
        kind: ``ours``, ``naive`` or ``monai``.
        allocator: ``default`` (glibc as it comes), ``tuned`` (by environment), ``kept`` (what ``medmae pretrain``
        does). precision: ``fp32`` or ``bf16`` (autocast).
        dropout: of the decoder.
        options: of the naive model (``fused``, ``needed``), of our kernels (``products``, ``attention``), or of the
            optimizer (``loop``: torch's default, one operation after the other).
    """

    key: str
    title: str
    kind: str
    allocator: str = "default"
    precision: str = "fp32"
    dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


PLAIN = {"products": "torch", "attention": "fused"}  # of our kernels: what torch does by itself

# One list is one group of processes that live, and take turns, at the same time; a group holds the memory of all of its
# members. What is compared stands in one group wherever memory allows it.
GROUPS = (
    (
        Setup("published", "straightforward, as published", "naive", dropout=0.1),
        Setup("naive", "straightforward", "naive"),
        Setup("ours_torch", "medmae, torch's own kernels", "ours", options=PLAIN),
        Setup("ours", "**medmae**", "ours"),
        Setup("ours_tuned_bf16", "**medmae**", "ours", "tuned", "bf16"),
        Setup("ours_kept_bf16", "**medmae**, as `pretrain` runs it", "ours", "kept", "bf16"),
        Setup("monai", "MONAI MaskedAutoEncoderViT", "monai"),
    ),
    (
        Setup("naive_tuned", "straightforward", "naive", "tuned"),
        Setup("naive_fused", "+ fused attention", "naive", "tuned", options={"fused": True}),
        Setup("naive_needed", "+ only the work that is needed", "naive", "tuned", options={"fused": True, "needed":
        True}), Setup("ours_tuned_loop", "medmae, torch's kernels, AdamW loop", "ours", "tuned", options=PLAIN |
        {"loop": True}), Setup("ours_tuned_torch", "medmae, torch's own kernels", "ours", "tuned", options=PLAIN),
        Setup("ours_tuned", "**medmae**", "ours", "tuned"),
        Setup("ours_tuned_bf16_fused", "medmae, torch's own kernels", "ours", "tuned", "bf16", options=PLAIN),
    ),
    (
        Setup("published_tuned", "straightforward, as published", "naive", "tuned", dropout=0.1),
        Setup("naive_bf16", "straightforward", "naive", "tuned", "bf16"),
        Setup("monai_tuned", "MONAI MaskedAutoEncoderViT", "monai", "tuned"),
        Setup("ours_tuned_dropout", "**medmae**, dropout as published", "ours", "tuned", dropout=0.1),
        Setup("ours_bf16", "**medmae**", "ours", "default", "bf16"),
        Setup("ours_kept", "**medmae**, as `pretrain` runs it", "ours", "kept"),
    ),
)  # fmt: skip

ATTRIBUTION = (
    ("dropout", "published", "naive"),
    ("allocator", "naive", "naive_tuned"),
    ("fused attention", "naive_tuned", "naive_fused"),
    ("only visible patches embedded, head on hidden ones only", "naive_fused", "naive_needed"),
    ("blocks, gathers, masks, loss", "naive_needed", "ours_tuned_loop"),
    ("AdamW in one pass", "ours_tuned_loop", "ours_tuned_torch"),
    ("float32 products, and attention head by head, by oneDNN", "ours_tuned_torch", "ours_tuned"),
    ("bfloat16", "ours_tuned", "ours_tuned_bf16_fused"),
    ("attention head by head in bfloat16", "ours_tuned_bf16_fused", "ours_tuned_bf16"),
)

GOALS = (
    ("fp32, no dropout, default allocator", "naive", "ours", 1.7),
    ("fp32, no dropout, tuned allocator", "naive_tuned", "ours_tuned", 1.05),
    ("bf16, tuned, against fp32 straightforward tuned", "naive_tuned", "ours_tuned_bf16", 1.7),
    ("best against as published", "published", "ours_tuned_bf16", 6.0),
    ("as `pretrain` runs it (bf16) against as published", "published", "ours_kept_bf16", 6.0),
)

MEMORY = (
    ("fp32 against without dropout", "naive", "ours"),
    ("fp32 against as published", "published", "ours"),
    ("bf16, as `pretrain` runs it, against as published", "published", "ours_kept_bf16"),
)
