"""Distillation energies: differentiable distances of a student from its teacher.

Every energy is a `keras.losses.Loss`, called with the teacher's logits as `y_true` and
the student's as `y_pred`, and gives one value per position. It can be used without the
rest of the library. `keras_betakd.energies.base` says what an energy is and how to
write one.
"""

from keras_betakd.energies.adaptive_kl import AdaptiveKLEnergy
from keras_betakd.energies.base import Energy
from keras_betakd.energies.ctkd import CTKDEnergy, CTKDMLPEnergy
from keras_betakd.energies.distances import (
    CosineLogitsEnergy,
    CosineProbsEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
)
from keras_betakd.energies.divergences import (
    ForwardKLEnergy,
    JensenShannonEnergy,
    ReverseKLEnergy,
    TotalVariationEnergy,
)
from keras_betakd.energies.dkd import DKDEnergy
from keras_betakd.energies.entropy_aware import EntropyAwareKLEnergy
from keras_betakd.energies.features import (
    FeatureCosineEnergy,
    FeatureEnergy,
    FeatureMSEEnergy,
    FeatureRelationEnergy,
)
from keras_betakd.energies.image_attention import ImageAttentionEnergy
from keras_betakd.energies.image_energies import AttentionEnergy, ImageTokenEnergy
from keras_betakd.energies.masking import select_supervised
from keras_betakd.energies.probability import ProbabilityEnergy
from keras_betakd.energies.skew import SkewForwardKLEnergy, SkewReverseKLEnergy
from keras_betakd.energies.taid import TAIDEnergy, TAIDSchedule
from keras_betakd.energies.uld import ULDEnergy

__all__ = [
    "AdaptiveKLEnergy",
    "AttentionEnergy",
    "CTKDEnergy",
    "CTKDMLPEnergy",
    "CosineLogitsEnergy",
    "CosineProbsEnergy",
    "DKDEnergy",
    "Energy",
    "EntropyAwareKLEnergy",
    "FeatureCosineEnergy",
    "FeatureEnergy",
    "FeatureMSEEnergy",
    "FeatureRelationEnergy",
    "ForwardKLEnergy",
    "ImageAttentionEnergy",
    "ImageTokenEnergy",
    "JensenShannonEnergy",
    "MSELogitsEnergy",
    "MSEProbsEnergy",
    "ProbabilityEnergy",
    "ReverseKLEnergy",
    "SkewForwardKLEnergy",
    "SkewReverseKLEnergy",
    "TAIDEnergy",
    "TAIDSchedule",
    "TotalVariationEnergy",
    "ULDEnergy",
    "select_supervised",
]
