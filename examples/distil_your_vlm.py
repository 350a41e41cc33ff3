# %% [markdown]
# # Distil a vision-language model
#
# A *teacher* that answers questions about images trains a *student* with a quarter of
# its parameters. The labels of the training questions are partly wrong, as labels are.
# [Beta-KD](https://arxiv.org/abs/2603.21426) learns how much to listen to the teacher:
# no weight is tuned by hand. It needs no GPU and no network; install it with
# `pip install -e ".[jax,examples]"`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import random
import textwrap
import time

import easy_vqa
import keras
import matplotlib.pyplot as plt
import small_gemma
from easy_vqa_data import make_problem

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationHistory,
    InstanceBeta,
)
from keras_betakd.data import ScienceQADataset, load_image, load_scienceqa
from keras_betakd.evaluation import generate_answers, score_scienceqa
from keras_betakd.models import load_model, save_preset

# A quick look at the notebook takes EPOCHS=1 QUESTIONS=64, and learns nothing.
EPOCHS = int(os.environ.get("EPOCHS", 18))
QUESTIONS = int(os.environ.get("QUESTIONS", 1000))
OUTPUT = os.path.join("output", "distil_your_vlm")

started = time.time()
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The questions
#
# [easy-VQA](https://github.com/vzhou842/easy-VQA) asks about a coloured shape, with two
# to four choices. In training, 30 % of the answers are replaced by a wrong one. The
# answers that validate and test the student are right.


# %%
def load_questions(questions, paths, number, wrong=0.0):
    """Records of `number` questions, drawn at random, a share of them mislabelled."""
    rng = random.Random(0)
    rows = []
    for question, answer, image in rng.sample(
        list(zip(*questions, strict=True)), number
    ):
        row = make_problem(question, answer, "train", rng)
        if rng.random() < wrong:
            others = [i for i in range(len(row["choices"])) if i != row["answer"]]
            row["answer"] = rng.choice(others)
        rows.append({**row, "image": paths[image]})
    return load_scienceqa(rows)


def batches(records, shuffle=False):
    """Batches of questions; the student answers with the text of a choice."""
    options = {"answer_format": "text", "form": small_gemma.PROMPT_FORM}
    return ScienceQADataset(records, batch_size=64, shuffle=shuffle, **options)


training = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
train = load_questions(*training, QUESTIONS, wrong=0.3)
held_out = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
held_out = load_questions(*held_out, QUESTIONS)
validation, test = held_out[: QUESTIONS // 4], held_out[QUESTIONS // 4 :]

figure, axes = plt.subplots(1, 4, figsize=(11, 3.6), layout="constrained")
for axis, record in zip(axes, test, strict=False):
    axis.imshow(load_image(record.image))
    axis.set_title(textwrap.fill(record.question, 24), fontsize=11)
    right = record.choices[record.answer]
    axis.set_xlabel(" / ".join(record.choices) + f"\nanswer: {right}")
    axis.set(xticks=[], yticks=[])

# %% [markdown]
# ## The teacher
#
# It is a small Gemma 3 that ships with the example. Any preset of keras-hub, such as
# `"gemma3_instruct_4b"`, is loaded in the same way.

# %%
teacher = load_model(small_gemma.TEACHER)


def accuracy(model):
    """The share of the test questions that a model answers rightly."""
    answers = generate_answers(model, batches(test), max_new_tokens=3, progress=False)
    return score_scienceqa(test, answers).accuracy


scores = {"teacher": accuracy(teacher)}
print(f"The teacher has {teacher.count_params():,} parameters.")
print(f"It answers {scores['teacher']:.1f} % of {len(test)} new questions rightly.")

# %% [markdown]
# ## A student that sees labels alone
#
# The student has the teacher's vision tower, which stays as it is, and an untrained
# language model of its own. Trained on the labels with plain Keras, it learns their
# errors, too.


# %%
def optimizer():
    steps = EPOCHS * len(batches(train))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, 0.02, warmup_target=3e-3, warmup_steps=max(1, steps // 20)
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0)


keras.utils.set_random_seed(0)
plain = small_gemma.make_student(teacher)
plain.backbone.vision_encoder.get_layer("image_encoder").trainable = False
model = keras.Model(plain.input, plain.output)
model.compile(
    optimizer(),
    keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    ),
)
labelled = small_gemma.KerasHubBatches(batches(train, True), plain.preprocessor)
model.fit(labelled, epochs=EPOCHS, shuffle=False, verbose=0)
scores["labels alone"] = accuracy(plain)
print(f"The student has {plain.count_params():,} parameters.")
print(f"It answers {scores['labels alone']:.1f} % rightly.")

# %% [markdown]
# ## A student that sees the teacher, too
#
# The same student starts from the same weights. The energy is the distance between the
# answers of the two, as one minus a cosine. `InstanceBeta()` weighs the teacher in
# each example by how sure the teacher is there; `task_beta=True` learns a weight of
# the labels.

# %%
keras.utils.set_random_seed(0)
student = small_gemma.make_student(teacher)
distiller = BetaKDDistiller(
    teacher,
    student,
    energies=CosineProbsEnergy(),
    beta=InstanceBeta(),
    task_beta=True,
    max_response_length=3,
)
distiller.compile(optimizer())
history = DistillationHistory(every=4)
distiller.fit(
    batches(train, shuffle=True),
    validation_data=batches(validation),
    epochs=EPOCHS,
    callbacks=[history],
    verbose=0,
)
title = "Beta-KD on easy-VQA, 30 % of the labels wrong"
history.plot(os.path.join(OUTPUT, "history.png"), title)

# %% [markdown]
# The accuracy in validation (dashed) is above that in training (solid), as the labels
# of the validation are all right. [What to look at](../docs/monitoring.md) explains
# every curve.
#
# ## Which student is better?

# %%
scores["labels and teacher"] = accuracy(student)
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
colors = ["#A0A0A0", "#56B4E9", "#0072B2"]
bars = axis.barh(list(scores), list(scores.values()), color=colors)
axis.bar_label(bars, fmt="%.1f %%", padding=3)
axis.set(xlim=(0, 115), xlabel=f"right answers to {len(test)} new questions, %")
axis.invert_yaxis()

# %% [markdown]
# ## Ask it

# %%
student.compile(sampler="greedy")
record = test[0]
(prompt,) = batches([record])[0]["prompts"]
image = load_image(record.image)
answer = distiller.generate({"images": image, "prompts": prompt}, strip_prompt=True)

figure, axis = plt.subplots(figsize=(2.2, 2.2), layout="constrained")
axis.imshow(image)
axis.axis("off")
print(f"{prompt}\nThe student answers: {answer}")

# %% [markdown]
# ## Ship it
#
# `save_preset` writes a folder that plain keras-hub loads. The teacher is not in it.

# %%
folder = os.path.join(OUTPUT, "student")
save_preset(student, folder)
shipped = load_model(folder)
before, after = (
    generate_answers(model, batches(test[:64]), max_new_tokens=3, progress=False)
    for model in (student, shipped)
)
size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
print(f"The weights and the settings take {size / 1e6:.1f} MB.")
print(f"The same answers to {len(before)} questions: {before == after}.")
print(f"This notebook took {(time.time() - started) / 60:.0f} minutes.")
