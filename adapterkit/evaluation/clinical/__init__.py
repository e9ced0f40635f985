"""What a cardiologist asks of echocardiography: volumes, ejection fraction, how far they agree.

Of label maps of apical two- and four-chamber views, whatever made them. For research; not for
clinical use.

    views = {v: {p: measure_view(labels[v, p], spacing, f"anna_{v}_{p}") ...}}
    heart = measure_patient("anna", ed={"2CH": ..., "4CH": ...}, es={"2CH": ..., "4CH": ...})
    heart.ef, heart.edv, heart.notes
"""

from adapterkit.evaluation.clinical.bland_altman import Agreement, Estimate, agreement
from adapterkit.evaluation.clinical.chambers import (
    ATRIUM,
    DISCS,
    VENTRICLE,
    Chamber,
    View,
    measure_view,
)
from adapterkit.evaluation.clinical.sequences import (
    Recording,
    dice_of_frames,
    find_phases,
    jitter,
    measure_sequence,
)
from adapterkit.evaluation.clinical.volumes import (
    VIEWS,
    LeftHeart,
    foreshortening,
    measure_patient,
    volume_of_area_and_length,
    volume_of_discs,
)

__all__ = [
    "ATRIUM",
    "DISCS",
    "VENTRICLE",
    "VIEWS",
    "Agreement",
    "Chamber",
    "Estimate",
    "LeftHeart",
    "Recording",
    "View",
    "agreement",
    "dice_of_frames",
    "find_phases",
    "foreshortening",
    "jitter",
    "measure_patient",
    "measure_sequence",
    "measure_view",
    "volume_of_area_and_length",
    "volume_of_discs",
]
