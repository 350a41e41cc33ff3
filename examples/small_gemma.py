"""The easy-VQA task of `scienceqa.py`: its data, its teacher and its student."""

import dataclasses
import os
import random

import keras
import keras_hub
from easy_vqa_data import relay_easy_vqa

from keras_betakd.data import load_scienceqa
from keras_betakd.preprocessing import model_inputs

HERE = os.path.dirname(os.path.abspath(__file__))
TEACHER = os.path.join(HERE, "presets", "easy_vqa_teacher")

# A setting in which a teacher helps: few labels, and not all of them right.
LABELLED_QUESTIONS = 1000
WRONG_LABELS = 0.3
TEST_QUESTIONS = 2000

TRAINING = {
    "epochs": 18,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "max_response_length": 3,
}

PROMPT_FORM = "llava-1.0"  # in which the teacher was trained

STUDENT_WIDTH = 32
STUDENT_LAYERS = 1
STUDENT_HEADS = 4


def load_records(directory, limit=None, test_limit=None, seed=0):
    """Training questions, some with a wrong label, and test questions."""
    relay_easy_vqa(directory)
    rng = random.Random(seed)
    train = list(load_scienceqa(directory, "train"))
    test = list(load_scienceqa(directory, "test"))
    train = rng.sample(train, limit or LABELLED_QUESTIONS)
    test = rng.sample(test, test_limit or TEST_QUESTIONS)
    return [_with_label_noise(record, rng) for record in train], test


def _with_label_noise(record, rng):
    if rng.random() >= WRONG_LABELS:
        return record
    wrong = [i for i in range(len(record.choices)) if i != record.answer]
    return dataclasses.replace(record, answer=rng.choice(wrong))


def make_student(teacher, layers=STUDENT_LAYERS):
    """A Gemma 3 with a fraction of the teacher's language model, untrained.

    As in the paper, it has the teacher's pretrained vision tower, which stays frozen;
    its projector and its language model start from random weights.

    Args:
        teacher: the `Gemma3CausalLM` that it is to learn from.
        layers: the number of its decoder blocks.
    """
    tower = teacher.backbone.vision_encoder
    config = {**tower.get_config(), "output_dim": STUDENT_WIDTH, "name": "vision"}
    vision_encoder = type(tower).from_config(config)
    encoder = vision_encoder.get_layer("image_encoder")
    encoder.set_weights(tower.get_layer("image_encoder").get_weights())
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=teacher.backbone.vocabulary_size,
        image_size=teacher.backbone.image_size,
        num_layers=layers,
        num_query_heads=STUDENT_HEADS,
        num_key_value_heads=STUDENT_HEADS // 2,
        hidden_dim=STUDENT_WIDTH,
        intermediate_dim=2 * STUDENT_WIDTH,
        head_dim=STUDENT_WIDTH // STUDENT_HEADS,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        vision_encoder=vision_encoder,
    )
    return keras_hub.models.Gemma3CausalLM(
        backbone=backbone, preprocessor=teacher.preprocessor
    )


class KerasHubBatches(keras.utils.PyDataset):
    """Batches as the model's own keras-hub preprocessor makes them."""

    def __init__(self, dataset, preprocessor):
        super().__init__()
        self.dataset = dataset
        self.preprocessor = preprocessor

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        batch = self.preprocessor(model_inputs(self.preprocessor, self.dataset[index]))
        return keras.tree.map_structure(keras.ops.convert_to_numpy, batch)

    def on_epoch_end(self):
        self.dataset.on_epoch_end()

    def start_epoch(self, epoch, logs=None):
        self.dataset.start_epoch(epoch)


def train_on_labels(student, batches, args, optimizer, progress):
    """Plain Keras training with cross-entropy alone; returns the seconds it took."""
    student.backbone.vision_encoder.get_layer("image_encoder").trainable = False
    model = keras.Model(student.input, student.output)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    model.compile(optimizer=optimizer, loss=loss, weighted_metrics=[accuracy])
    data = KerasHubBatches(batches, student.preprocessor)
    # `start_epoch` gives a resumed run the batches of an uninterrupted one. The data
    # set shuffles itself.
    order = keras.callbacks.LambdaCallback(on_epoch_begin=data.start_epoch)
    return progress.fit("labels", model, data, args.epochs, [order], shuffle=False)
