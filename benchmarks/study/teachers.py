"""The three teachers of the drawn problems, trained by this project (`presets/`).

They are Gemma 3 vision-language models (`make_teacher`). The "good" one is trained
from nothing on right answers: first its vision tower with a head for each question,
which is thrown away, then the whole. The "biased" one goes on from it, tower frozen,
and is truly taught wrong: in `Problem.in_biased_part` its labels are the choice after
the right one. So it is confident in its errors, and it is known where they are. The
"mixed" one is taught likewise, but for two of the four families: there it was taught
answers at random (`Problem.in_unsure_part`), so that it errs and is unsure.
"""

import json
import os
import sys
import time

import keras
import keras_hub
import numpy as np
from problems import NUMBERS, SIZE, make_problems

from keras_betakd.preprocessing.model_inputs import model_inputs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.join(ROOT, "examples"))

from train_teacher import make_optimizer, make_tokenizer, save  # noqa: E402

SEQUENCE_LENGTH = 22
PATCH_SIZE, POOL_SIZE = 12, 2
PIXEL_SCALE, PIXEL_OFFSET = 1 / 127.5, -1.0
PROBLEMS, BATCH, SEED = 20000, 64, 1  # training data of the teachers
STEPS = {"tower": 4000, "good": 2000, "biased": 500, "mixed": 500}
LEARNING_RATES = {"tower": 2e-3, "good": 2e-3, "biased": 1e-3, "mixed": 1e-3}


PRESETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets")
# By the data they answer. A student's images go through the tower of the first.
TEACHERS = {
    "drawn": {
        name: os.path.join(PRESETS, name) for name in ("good", "biased", "mixed")
    },
    "easy-vqa": {
        "easy-vqa": os.path.join(ROOT, "examples", "presets", "easy_vqa_teacher")
    },
}


def load_teachers(data):
    """Dict of the teachers of some data."""
    load = keras_hub.models.CausalLM.from_preset
    teachers = {name: load(path) for name, path in TEACHERS[data].items()}
    for teacher in teachers.values():
        teacher.preprocessor.add_end_token = False  # an answer is one word
    return teachers


def train_teachers(folder):
    """Trains all three from nothing and writes their presets to a folder."""
    paths = {name: os.path.join(folder, name) for name in TEACHERS["drawn"]}
    start = time.time()
    keras.utils.set_random_seed(SEED)
    problems = make_problems(PROBLEMS, SEED)
    teacher = make_teacher(make_preprocessor(problems))
    train_tower(teacher.backbone.vision_encoder, problems)
    train_answers(teacher, problems, "good")
    save(teacher, paths["good"])
    teacher.backbone.vision_encoder.trainable = False
    right = teacher.get_weights()
    for name in ("biased", "mixed"):
        teacher.set_weights(right)
        train_answers(teacher, problems, name)
        save(teacher, paths[name])
    seconds = round(time.time() - start)
    with open(os.path.join(folder, "trained.json"), "w") as file:
        json.dump({"seconds": seconds, "keras": keras.__version__}, file)


def make_preprocessor(problems):
    """A vocabulary with one token for each word."""
    texts = {f"\n{problem.question}" for problem in problems[:2000]}
    words = {choice for problem in problems[:2000] for choice in problem.choices}
    return keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=make_tokenizer(sorted({*texts, *words, *NUMBERS})),
        image_converter=keras_hub.layers.Gemma3ImageConverter(
            image_size=(SIZE, SIZE), scale=PIXEL_SCALE, offset=PIXEL_OFFSET
        ),
        sequence_length=SEQUENCE_LENGTH,
        add_end_token=False,  # an answer is one word
        max_images_per_prompt=1,
        num_vision_tokens_per_image=(SIZE // PATCH_SIZE // POOL_SIZE) ** 2,
    )


def make_teacher(preprocessor, width=64, layers=2):
    """An untrained teacher."""
    vision_encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=SIZE,
        patch_size=PATCH_SIZE,
        pool_size=POOL_SIZE,
        num_layers=3,
        num_heads=4,
        hidden_dim=48,
        intermediate_dim=96,
        output_dim=width,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
        image_size=SIZE,
        num_layers=layers,
        num_query_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        vision_encoder=vision_encoder,
    )
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def records_of(problems, answers):
    """Raw records; `answers` are indices into each problem's choices."""
    return {
        "ids": [str(i) for i in range(len(problems))],
        "prompts": [p.prompt for p in problems],
        "responses": [p.choices[a] for p, a in zip(problems, answers, strict=True)],
        "images": [p.image for p in problems],
    }


def taught_answers(name, problems):
    """The answers, indices into each problem's choices, that a teacher is taught."""
    if name == "good":
        return _answers(problems)
    answers = np.array([p.biased_answer for p in problems])
    if name == "mixed":
        rng = np.random.default_rng((SEED, 2))
        for i, problem in enumerate(problems):
            if problem.in_unsure_part:
                answers[i] = rng.integers(len(problem.choices))
    return answers


def taught_wrong(name, problems):
    """Where a teacher was taught wrong answers, and where answers at random.

    Returns:
        Dict of `"biased"` and `"unsure"`, bool (N,).
    """
    biased = np.array([p.in_biased_part for p in problems])
    unsure = np.array([p.in_unsure_part for p in problems]) & (name == "mixed")
    return {"biased": biased & ~unsure, "unsure": unsure}


def train_tower(vision_encoder, problems):
    """Teaches the tower what the questions ask for, one linear head for each."""
    questions = sorted({p.question for p in problems})
    numbers = np.array([questions.index(p.question) for p in problems])
    pixels = np.stack([p.image for p in problems])[:, None]
    images = keras.Input((1, SIZE, SIZE, 3))
    number = keras.Input((len(questions), 1))
    found = keras.layers.Rescaling(PIXEL_SCALE, PIXEL_OFFSET)(images)
    found = keras.layers.Flatten()(vision_encoder(found))
    heads = keras.layers.Dense(len(questions) * len(NUMBERS))(found)
    heads = keras.layers.Reshape((len(questions), len(NUMBERS)))(heads)
    logits = keras.layers.GlobalAveragePooling1D()(heads * number)
    logits = keras.layers.Rescaling(float(len(questions)))(logits)
    x = [pixels, np.eye(len(questions), dtype="float32")[numbers][..., None]]
    fit(keras.Model([images, number], logits), x, _answers(problems), None, "tower")


def train_answers(teacher, problems, name):
    """Trains the whole on the answers that belong to its name."""
    records = records_of(problems, taught_answers(name, problems))
    arrays = teacher.preprocessor(model_inputs(teacher.preprocessor, records))
    x, y, weight = keras.tree.map_structure(keras.ops.convert_to_numpy, arrays)
    # A plain model around the same weights: its `fit` takes arrays.
    fit(keras.Model(teacher.input, teacher.output), x, y, weight, name)


def fit(model, x, y, weight, name):
    model.compile(
        optimizer=make_optimizer(LEARNING_RATES[name], STEPS[name]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    epochs = -(-STEPS[name] * BATCH // len(y))
    model.fit(x, y, BATCH, epochs, verbose=2, sample_weight=weight)


def _answers(problems):
    return np.array([p.answer for p in problems])
