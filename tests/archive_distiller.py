"""The distiller whose files are in `golden/archive_c98251b`, and its numbers.

It has every energy and every beta of the library, and each kind of state that a file
holds: student, betas, projections, schedules, running means, optimizer. Nothing here is
drawn at random but where the projections and the temperature network start, which a
file replaces: weights, images and texts are the same on every machine.
"""

import os

import keras
import numpy as np
from keras import ops
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tiny_models import tiny_gemma3, tokenizer_proto

from keras_betakd import (
    AdaptiveKLEnergy,
    AnalyticBeta,
    AttentionEnergy,
    BetaKDDistiller,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    CTKDEnergy,
    CTKDMLPEnergy,
    DistillationPreprocessor,
    DKDEnergy,
    FeatureCosineEnergy,
    FeatureMSEEnergy,
    FeatureRelationEnergy,
    FixedBeta,
    ForwardKLEnergy,
    ImageTokenEnergy,
    InstanceBeta,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TAIDEnergy,
    TaskBeta,
    TokenBeta,
    TotalVariationEnergy,
    ULDEnergy,
)

FOLDER = os.path.join(os.path.dirname(__file__), "golden", "archive_c98251b")
ARCHIVE = os.path.join(FOLDER, "distiller.keras")
NUMBERS = os.path.join(FOLDER, "distiller.json")
# On PyTorch the student stood elsewhere in weights files than on JAX and TensorFlow, so
# that neither could load the other's.
WRITER = "torch" if keras.backend.backend() == "torch" else "jax"
WEIGHTS = os.path.join(FOLDER, f"distiller.{WRITER}.weights.h5")
TEACHER_WIDTH = 12
CLASSES = 160


@keras.saving.register_keras_serializable(package="archive")
def two_moments(teacher):
    """Mean and mean square of the answer rows' hidden states: (B, 2)."""
    rows = ops.cast(teacher.rows, "float32")
    return ops.stack(
        [ops.mean(rows, axis=(1, 2)), ops.mean(ops.square(rows), axis=(1, 2))], axis=-1
    )


def built(beta):
    """Builds a beta with two features; only a batch would tell their number."""
    beta.build((None, None), (None, 2))
    return beta


def energies_and_betas():
    """Returns energy and beta by name, with settings other than the defaults."""
    slow = {"multiplier": 3.0}
    small = {"hidden_units": 3, "multiplier": 5.0}
    hidden = {"features": "hidden_states"}
    return {
        "forward": (ForwardKLEnergy(2.0, scale_by_t2=True), FixedBeta(2.0)),
        "forward_ce": (ForwardKLEnergy(form="cross_entropy"), TaskBeta(2.0, **slow)),
        "reverse": (ReverseKLEnergy(), InstanceBeta(**hidden, **small)),
        "shannon": (
            JensenShannonEnergy(0.3),
            InstanceBeta(features="uncertainty", **small),
        ),
        "variation": (
            TotalVariationEnergy(),
            built(InstanceBeta(features=two_moments, **small)),
        ),
        "skew_forward": (SkewForwardKLEnergy(), TokenBeta(**hidden, **small)),
        "skew_reverse": (
            SkewReverseKLEnergy(),
            TokenBeta(features="uncertainty", **small),
        ),
        "adaptive": (AdaptiveKLEnergy(head_rule="prefix"), AnalyticBeta(momentum=0.5)),
        "decoupled": (DKDEnergy(beta=2.0), AnalyticBeta(dim=2.0)),
        "taid": (TAIDEnergy(1000, rate=0.5, momentum=0.5), TaskBeta(**slow)),
        "ctkd": (CTKDEnergy(10, multiplier=10.0), TaskBeta(**slow)),
        "ctkd_mlp": (CTKDMLPEnergy(10, CLASSES, units=(4,)), TaskBeta(**slow)),
        "cosine_probs": (CosineProbsEnergy(), TaskBeta(**slow)),
        "cosine_logits": (CosineLogitsEnergy(), FixedBeta(3.0)),
        "mse_probs": (MSEProbsEnergy(), AnalyticBeta()),
        "mse_logits": (MSELogitsEnergy(ddof=0), TaskBeta(**slow)),
        "uld": (ULDEnergy(), FixedBeta(1.5)),
        "feature_mse": (FeatureMSEEnergy(top_tokens=3), TaskBeta(**slow)),
        "feature_cosine": (
            FeatureCosineEnergy("image_hidden_states", align="pool"),
            TaskBeta(**slow),
        ),
        "hidden_mse": (FeatureMSEEnergy("hidden_states"), AnalyticBeta()),
        "relation": (FeatureRelationEnergy(), FixedBeta(0.5)),
        "attention": (AttentionEnergy(), AnalyticBeta(dim=0.1)),
        "image_tokens": (ImageTokenEnergy(TAIDEnergy(10)), TaskBeta(**slow)),
    }


def task_weighting(beta):
    """The argument that gives the cross-entropy a beta.

    At c98251b it was `weight_task_loss`; no other argument has been renamed since.
    """
    return {"task_beta": beta}


def patterned(model, start):
    """Sets weights between -1/2 and 1/2 computed from integers, without a generator."""
    values = []
    for i, weight in enumerate(model.get_weights()):
        numbers = np.arange(weight.size) * 7919 + 131 * i + start
        values.append((numbers % 1009 / 1009 - 0.5).reshape(weight.shape))
    model.set_weights(values)
    return model


def models(start):
    """Teacher and student, which share a tokenizer; `start` is the student's."""
    teacher = patterned(tiny_gemma3(width=TEACHER_WIDTH, sequence_length=40), 1)
    student = patterned(tiny_gemma3(sequence_length=40), start)
    # Without SentencePiece's table of Unicode forms, nine tenths of what it saves.
    proto = ModelProto.FromString(tokenizer_proto())
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.ClearField("precompiled_charsmap")
    teacher.preprocessor.tokenizer.set_proto(proto.SerializeToString())
    student.preprocessor.tokenizer = teacher.preprocessor.tokenizer
    return teacher, student


def build_distiller(start):
    """The distiller before its first step, compiled.

    Args:
        start: number that the weights of student and betas rest on; the teacher, which
            is not in weights files, is always the same.
    """
    teacher, student = models(start)
    pairs = energies_and_betas()
    distiller = BetaKDDistiller(
        teacher,
        student,
        energies={name: energy for name, (energy, _) in pairs.items()},
        beta={name: beta for name, (_, beta) in pairs.items()},
        preprocessor=DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, 6
        ),
        **task_weighting(TaskBeta(dim=2.0, multiplier=3.0)),
    )
    for i, beta in enumerate([distiller.task_beta, *distiller.betas.values()]):
        # The running means of an `AnalyticBeta` are of the energies it has seen.
        if not isinstance(beta, AnalyticBeta):
            patterned(beta, start + 97 * i)
    # Falls by half in two steps, so that a count of steps that was lost shows.
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 2, 0.5)
    distiller.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=0.1))
    return distiller


def records():
    """Three records, each with an image."""
    ramp = np.arange(16 * 16 * 3).reshape(16, 16, 3)
    images = [ramp % 256, ramp * 7 % 256, 255 - ramp * 5 % 256]
    question = "<image>\nQuestion: "
    texts = "what color is the shape?", "is there a circle?", "which shape is present?"
    return {
        "prompts": [question + text for text in texts],
        "responses": ["red", "yes", "the triangle"],
        "images": [[image.astype("uint8")] for image in images],
    }


def _fixed_features(beta):
    """Fixed feature values, as wide as those that a predicted beta was built for."""
    width = {"hidden_states": TEACHER_WIDTH, "uncertainty": 3}.get(beta.features, 2)
    shape = (2, 3, width) if beta.per_token else (2, width)
    numbers = np.arange(np.prod(shape)) * 7 % 11 / 11
    return ops.convert_to_tensor(numbers.reshape(shape).astype("float32"))


def log_betas(distiller):
    """Each log beta by its energy's name; of a predicted one, at fixed features."""
    values = {}
    for name, beta in {"task": distiller.task_beta, **distiller.betas}.items():
        features = _fixed_features(beta) if beta.uses_features else None
        value = ops.convert_to_numpy(beta.log_beta(features))
        values[name] = value.astype("float64").tolist()
    return values


def load_archive():
    """The distiller as it was saved.

    Two names have to be given. `ULDEnergy` was not registered with Keras then. And
    Keras on PyTorch saves optimizers as classes of its own for PyTorch, with which no
    other backend can train.
    """
    known = {"ULDEnergy": ULDEnergy, "AdamW": keras.optimizers.AdamW}
    return keras.saving.load_model(ARCHIVE, custom_objects=known)


def numbers_of(distiller):
    """What the files have to bring back: state, betas, and two more training steps.

    Two, since a step of the curriculum of `CTKDEnergy` shows in the one after it.
    """
    numbers = {"evaluate": evaluated(distiller), "log_beta": log_betas(distiller)}
    for step in ("first_step", "second_step"):
        distiller.reset_metrics()
        numbers[step] = _floats(distiller.train_on_batch(records(), return_dict=True))
    numbers["log_beta_afterwards"] = log_betas(distiller)
    numbers["evaluate_afterwards"] = evaluated(distiller)
    return numbers


def evaluated(distiller):
    """Every metric of `evaluate` on the records."""
    return _floats(distiller.evaluate(records(), verbose=0, return_dict=True))


def _floats(metrics):
    return {name: float(value) for name, value in metrics.items()}
