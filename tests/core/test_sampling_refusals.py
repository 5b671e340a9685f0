"""What a budget refuses."""

from __future__ import annotations

import pytest

from medmae.core.sampling import ratio_per_modality


@pytest.mark.parametrize("value", [(0.9, 0.6), (0.5, 1.0), 1.0])
def test_what_is_no_ratio_and_no_range_of_ratios_is_refused(value: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="ratio"):
        ratio_per_modality(value, modalities=2)
