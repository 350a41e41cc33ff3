"""Uncertainty-aware knowledge distillation of multimodal LLMs (Beta-KD) for Keras 3."""

# Before the imports that take seconds: Ctrl-C ends the command during these, too.
import keras_betakd.interrupts  # noqa: F401

# isort: split
from keras_betakd.betas import (
    AnalyticBeta,
    Beta,
    FixedBeta,
    InstanceBeta,
    TaskBeta,
    TeacherOutputs,
    TokenBeta,
)
from keras_betakd.callbacks import DistillationHistory
from keras_betakd.distillation.distiller import BetaKDDistiller
from keras_betakd.distillation.finite_steps_optimizer import FiniteStepsOptimizer
from keras_betakd.distillation.nonfinite_report import NonFiniteError
from keras_betakd.distillation.student_weights import load_student_weights
from keras_betakd.distribution.layout_map import layout_map
from keras_betakd.energies import (
    AdaptiveKLEnergy,
    AttentionEnergy,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    CTKDEnergy,
    CTKDMLPEnergy,
    DKDEnergy,
    Energy,
    EntropyAwareKLEnergy,
    FeatureCosineEnergy,
    FeatureMSEEnergy,
    FeatureRelationEnergy,
    ForwardKLEnergy,
    ImageAttentionEnergy,
    ImageTokenEnergy,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TAIDEnergy,
    TotalVariationEnergy,
    ULDEnergy,
)
from keras_betakd.memory.plan import MemoryPlan, MemorySaving
from keras_betakd.on_policy.answer_records import answer_records
from keras_betakd.on_policy.student_answers import StudentAnswers
from keras_betakd.on_policy.student_branches import StudentBranches
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.process_share import ProcessShare
from keras_betakd.released import released_energy, released_weighting
from keras_betakd.teacher_cache.build import cache_teacher
from keras_betakd.teacher_cache.teacher import CachedTeacher
from keras_betakd.training_backup import TrainingBackup
from keras_betakd.version import __version__

__all__ = [
    "AdaptiveKLEnergy",
    "AnalyticBeta",
    "AttentionEnergy",
    "Beta",
    "BetaKDDistiller",
    "CTKDEnergy",
    "CTKDMLPEnergy",
    "CachedTeacher",
    "CosineLogitsEnergy",
    "CosineProbsEnergy",
    "DKDEnergy",
    "DistillationHistory",
    "DistillationPreprocessor",
    "Energy",
    "EntropyAwareKLEnergy",
    "FeatureCosineEnergy",
    "FeatureMSEEnergy",
    "FeatureRelationEnergy",
    "FiniteStepsOptimizer",
    "FixedBeta",
    "ForwardKLEnergy",
    "ImageAttentionEnergy",
    "ImageTokenEnergy",
    "InstanceBeta",
    "JensenShannonEnergy",
    "MSELogitsEnergy",
    "MSEProbsEnergy",
    "MemoryPlan",
    "MemorySaving",
    "NonFiniteError",
    "ProcessShare",
    "ReverseKLEnergy",
    "SkewForwardKLEnergy",
    "SkewReverseKLEnergy",
    "StudentAnswers",
    "StudentBranches",
    "TAIDEnergy",
    "TaskBeta",
    "TeacherOutputs",
    "TokenBeta",
    "TotalVariationEnergy",
    "TrainingBackup",
    "ULDEnergy",
    "__version__",
    "answer_records",
    "cache_teacher",
    "layout_map",
    "load_student_weights",
    "released_energy",
    "released_weighting",
]
