"""Names of imaging sequences, known by name and never by channel order.

Every cohort spells them differently (``t1ce``, ``T1Gd``, ``ce-gadolinium_T1w``); a model trained on one spelling
must meet the same name in the next cohort. This table is plain strings so that every room may use it without
importing anything. Names that are not in the table are legal: they are kept, spelled in lower case.
"""

from __future__ import annotations

import difflib
import re

CANONICAL: dict[str, str] = {
    "t1n": "T1-weighted, native",
    "t1c": "T1-weighted, with contrast agent",
    "t2w": "T2-weighted",
    "t2f": "T2-weighted FLAIR",
    "pd": "proton density",
    "t2s": "T2*-weighted (gradient echo)",
    "swi": "susceptibility-weighted",
    "dwi": "diffusion-weighted (trace)",
    "adc": "apparent diffusion coefficient",
    "fa": "fractional anisotropy",
    "dir": "double inversion recovery",
    "cbf": "cerebral blood flow",
    "cbv": "cerebral blood volume",
    "mtt": "mean transit time",
    "tmax": "time to maximum",
    "mra": "MR angiography",
    "qsm": "quantitative susceptibility map",
    "dce": "dynamic contrast-enhanced, one phase",
    "ct": "computed tomography",
    "cta": "CT angiography",
    "ctc": "CT with contrast agent",
    "pet": "positron emission tomography",
}
"""Canonical name -> what it is, in the order in which tables and models list them."""

SPELLINGS: dict[str, str] = {
    "t1n": "t1 t1w t1pre t1_native t1w_pre t1_mprage mprage t1w_mprage spgr t1_spgr t1wi t1_weighted t1_unenhanced",
    "t1c": "t1ce t1gd t1_gd t1w_ce t1w_gd t1_post t1post t1w_post t1_c t1_ce t1c_w t1k t1_km t1_contrast t1ca t1cw "
    "ce_gadolinium_t1w ce_gd_t1w ce_t1w gd_t1w t1ce_w t1wce t1wgd t1wc t1_gad t1gad t1wks t1ks t1_postcontrast",
    "t2w": "t2 t2wi t2_weighted t2_tse t2tse t2_fse t2w_tse t2wks",
    "t2f": "flair t2flair t2_flair fl t2w_flair t2_fluid flair_w tirm t2_tirm fla darkfluid dark_fluid",
    "pd": "pdw pdwi proton_density pd_w",
    "t2s": "t2star t2starw t2_star t2sw gre t2_gre hemo",
    "swi": "sw swan venobold",
    "dwi": "trace dwi_trace tracew b1000 dwi_b1000 diffusion",
    "adc": "adc_map dadc apparent_diffusion",
    "fa": "fa_map dti_fa",
    "dir": "double_ir",
    "cbf": "rcbf",
    "cbv": "rcbv",
    "mtt": "",
    "tmax": "t_max",
    "mra": "tof tof_mra mra_tof angio",
    "qsm": "chimap chi_map",
    "dce": "",
    "ct": "ncct ct_native nect",
    "cta": "ct_angio",
    "ctc": "cect ct_contrast ct_ce",
    "pet": "fdg fdg_pet pet_fdg suv",
}


def squash(name: str) -> str:
    """Only the lower-case letters and digits of ``name``: what two spellings are compared by."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("*", "star"))


ALIASES: dict[str, str] = {
    squash(spelling): name for name, line in SPELLINGS.items() for spelling in (name, *line.split())
}
"""Squashed spelling -> canonical name."""


def is_known(name: str) -> bool:
    """Whether ``name`` is a canonical sequence or one of its known spellings."""
    return squash(name) in ALIASES


def canonical(name: str) -> str:
    """The name every room uses for ``name``: ``t1ce`` -> ``t1c``, ``FLAIR`` -> ``t2f``; unknown names in lower case.

    Raises ValueError where nothing is left that could be a name.
    """
    known = ALIASES.get(squash(name))
    if known is not None:
        return known
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not plain:
        raise ValueError(
            f"{name!r} is not a sequence name: it has neither letters nor digits. Use names like t1n or flair."
        )
    return plain


def nearest(name: str, *, among: tuple[str, ...] = (), count: int = 3) -> tuple[str, ...]:
    """The closest known names to ``name``, best first; ``among`` replaces the table's own names."""
    pool = {squash(word): word for word in among} if among else {**ALIASES}
    found = difflib.get_close_matches(squash(name), list(pool), n=3 * count, cutoff=0.7 if among else 0.5)
    return tuple(dict.fromkeys(pool[word] for word in found))[:count]


def in_order(names: tuple[str, ...] | list[str] | set[str]) -> tuple[str, ...]:
    """``names`` without repeats: canonical ones first in the table's order, then the others by alphabet."""
    place = {name: index for index, name in enumerate(CANONICAL)}
    return tuple(sorted(set(names), key=lambda name: (place.get(name, len(place)), name)))
