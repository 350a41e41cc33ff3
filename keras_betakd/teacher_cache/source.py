"""`TeacherSource`: runs the live teacher of a cache and selects what is stored."""

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_betakd import fingerprints
from keras_betakd.backends import put_at
from keras_betakd.betas.teacher_features import TeacherOutputs, hidden_features
from keras_betakd.distillation.distiller import BetaKDDistiller
from keras_betakd.models.views import view_of
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.prompt_templates import encoding_label
from keras_betakd.preprocessing.teacher_sides import by_teacher
from keras_betakd.teacher_cache.files import FORMAT, CacheSettings, with_template
from keras_betakd.teacher_cache.outputs import CachedOutputs, is_by_token


class TeacherSource:
    """The live teacher of a cache.

    Args:
        source: a `BetaKDDistiller`, whose energies and betas determine what is stored,
            or a keras-hub `CausalLM`.
        max_response_length: the maximum number of answer tokens of a record; that of
            the distiller's preprocessor if it has one.
        top_k: the number of classes to store; `None` for all.
        prompt_template: the template of a teacher's prompts; a distiller has its own.

    Attributes:
        kind: as in `CacheSettings`.

    Raises:
        ValueError: a model without hidden states or preprocessor, a cached teacher, a
            pair with different tokenizers, or a wrong `top_k`.
    """

    def __init__(self, source, max_response_length, top_k, prompt_template="auto"):
        features, by_token = set(), False
        if isinstance(source, BetaKDDistiller):
            part, pair = _only_teacher(source), source.preprocessor
            self.view, features = part.view, part.comparison.wanted("teacher")
            by_token = any(map(_reads_rows, [*source.betas.values(), source.task_beta]))
        else:
            self.view, pair = view_of(source), None
        _expect_one_size(self.view, features)
        preprocessor = getattr(self.view.model, "preprocessor", None)
        if not self.view.sees_hidden_states or preprocessor is None:
            raise ValueError(
                "A cache is made of a keras-hub CausalLM with its preprocessor. "
                f"Received: {type(self.view.model).__name__}"
            )
        if isinstance(preprocessor, CachedOutputs):
            raise ValueError("The teacher is a cached one already.")
        if pair is not None:
            if any(by_teacher(pair.cross_tokenizer).values()):
                raise ValueError(
                    "A cache holds the answer tokens of the teacher's tokenizer, so it "
                    "cannot serve a student with another tokenizer."
                )
            max_response_length = pair.max_response_length
            prompt_template = _template_of(pair, prompt_template)
        self.preprocessor = _TeacherPreprocessor(
            preprocessor,
            preprocessor,
            max_response_length,
            prompt_template={"teacher": prompt_template, "student": prompt_template},
            trained_turns="all" if pair is None else pair.trained_turns,
        )
        self.top_k = _checked(top_k, self.classes)
        self.kind = "top_k" if top_k else "hidden"
        if top_k is None and not self.view.head.has_matrix:
            self.kind = "logits"
        keeps_rows = self.kind == "hidden" or by_token or "hidden_states" in features
        self._model = TeacherReading(self.view, features, self.kind, top_k, keeps_rows)
        self._stored = self._model.stored()

    @property
    def classes(self):
        return self.view.logit_size

    def settings(self):
        """The `CacheSettings` of a cache that this teacher makes."""
        matrix = self.view.head.matrix() if self.kind == "hidden" else None
        preprocessor = self.preprocessor.teacher_preprocessor
        template = self.preprocessor.prompt_templates["teacher"]
        label = encoding_label(template, self.preprocessor.trained_turns)
        return CacheSettings(
            format=FORMAT,
            versions=fingerprints.versions(),
            teacher=fingerprints.of_weights(self.view.model),
            teacher_settings=fingerprints.of_architecture(self.view.model),
            preprocessor=with_template(
                fingerprints.of_preprocessor(preprocessor), label
            ),
            vocabulary=fingerprints.of_vocabulary(preprocessor.tokenizer),
            add_end_token=getattr(preprocessor, "add_end_token", True),
            kind=self.kind,
            top_k=self.top_k,
            arrays=sorted(self._stored),
            vocabulary_size=self.classes,
            hidden_dim=self.view.hidden_dim,
            head_dtype=matrix and matrix.dtype,
            soft_cap=matrix and matrix.soft_cap,
        )

    def head(self):
        """Dict of the LM head's arrays; empty if no hidden states are stored."""
        if self.kind != "hidden":
            return {}
        matrix = self.view.head.matrix()
        arrays = {"kernel": matrix.kernel, "bias": matrix.bias}
        return {
            k: compacted(ops.convert_to_numpy(ops.cast(v, "float32")))
            for k, v in arrays.items()
            if v is not None
        }

    def outputs(self, records):
        """What is stored of a batch: dict of (tokens, ...) and (records, ...) arrays.

        Args:
            records: dict of raw records.
        """
        x, y, weight = self.preprocessor(records)
        positions = x["student_positions"]
        made = self._model.predict_on_batch({"x": x["student"], "positions": positions})
        used = weight > 0
        kept = {"labels": y[used], "tokens": used.sum(axis=1)}
        for name, value in made.items():
            value = np.asarray(value)
            kept[name] = value[used] if is_by_token(name) else value
        return kept


def _only_teacher(distiller):
    """The `TeacherPart` of a distiller; raises where it has several teachers."""
    parts = distiller.teacher_parts
    if len(parts) > 1:
        raise ValueError(
            "A cache is of one teacher. Give a distiller of this teacher alone and its "
            "energies, one after the other, so that one is in memory at a time; then "
            "train with a dict of the `CachedTeacher`s. Received: a distiller with the "
            f"teachers {[part.name for part in parts]}"
        )
    return parts[0]


class _TeacherPreprocessor(DistillationPreprocessor):
    """That of a teacher alone, which is no student that remembers its template."""

    def _remember(self, teachers, given, found):
        pass


def _template_of(pair, prompt_template):
    """The template of a pair's teacher; raises if another one is asked for."""
    if not isinstance(prompt_template, str) or prompt_template != "auto":
        raise ValueError(
            "A distiller's own `prompt_template` is that of the cache. Give it to the "
            f"distiller. Received: prompt_template={prompt_template!r}"
        )
    return next(t for role, t in pair.prompt_templates.items() if role != "student")


def _expect_one_size(view, features):
    """Raises if features at image tokens are wanted, of which there is any number."""
    found = sorted(features - {"hidden_states"})
    if found and view.images_vary:
        raise ValueError(
            f"Images of {type(view.model).__name__} have tokens by their size, and a "
            f"cache holds as many numbers for each record. Received: energies that "
            f"compare {found}. Train them with the teacher itself, or cache a "
            "distiller without them."
        )


def compacted(array):
    """A float32 array in half precision if that changes no value, else unchanged."""
    if array.dtype != np.float32:
        return array
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            half = array.astype(dtype)
        if np.array_equal(half.astype("float32"), array, equal_nan=True):
            return half
    return array


def _reads_rows(beta):
    """Whether a beta is predicted from each token's hidden state."""
    return getattr(beta, "features", None) == "hidden_states" and beta.per_token


def _checked(top_k, classes):
    if top_k is None:
        return None
    if not isinstance(top_k, int) or not 1 <= top_k < classes:
        raise ValueError(
            f"`top_k` must be an integer from 1 to {classes - 1}, fewer than the "
            f"{classes} classes, or `None` for all. Received: top_k={top_k}"
        )
    return top_k


class TeacherReading(keras.Model):
    """Model of a teacher's inputs to its outputs that are stored.

    Args:
        view: the teacher's `ModelView`.
        features: set of names of `Features` to store.
        kind, top_k: as in `CacheSettings`.
        keeps_rows: whether the hidden states of answer tokens are stored.
    """

    def __init__(self, view, features, kind, top_k, keeps_rows):
        super().__init__(dtype="float32")
        self.network, self._view = view.computing_layers, view
        self._reader = view.reader(features)
        self._kind, self._top_k, self._keeps_rows = kind, top_k, keeps_rows

    def stored(self):
        """The names of the outputs of `call`."""
        names = set(self._reader.wanted) - {"hidden_states"}
        names |= {"present"} if names else set()
        names |= {"rows"} if self._keeps_rows else set()
        names |= {"packed"} if self._kind != "hidden" else set()
        return names | {"hidden_mean"}

    def call(self, inputs):
        made = self._reader.outputs(inputs["x"], inputs["positions"], training=False)
        read = TeacherOutputs(
            weights=None,
            hidden_states=made.hidden_states,
            padding_mask=made.padding_mask,
        )
        kept = {"hidden_mean": hidden_features(read)}
        if self._keeps_rows:
            kept["rows"] = made.rows
        if self._kind != "hidden":
            logits = ops.cast(self._view.head(made.rows), "float32")
            kept["packed"] = logits
            if self._kind == "top_k":
                kept["packed"] = top_classes(logits, self._top_k)
        for name in self.stored() - set(kept):
            kept[name] = made.features.named(name)
        return {
            k: v if k == "present" else ops.cast(v, "float32") for k, v in kept.items()
        }


def top_classes(logits, k):
    """Log-probabilities of the k best classes, their ids, and log r.

    Args:
        logits: (..., V).
        k: the number of classes.

    Returns:
        (..., 2 k + 1) float32: k log-probabilities in nats, k ids, and log r, r being
        the probability of the V - k other classes together.
    """
    shape, classes = ops.shape(logits)[:-1], logits.shape[-1]
    log_p = ops.log_softmax(ops.reshape(logits, (-1, classes)), axis=-1)
    values, ids = ops.top_k(log_p, k)
    # Summed over the other classes: 1 - sum(p) would round a small rest to 0.
    ids = ops.cast(ids, "int32")
    others = put_at(log_p, ids, ops.full_like(values, -float("inf")))
    rest = ops.logsumexp(others, axis=-1, keepdims=True)
    packed = ops.concatenate([values, ops.cast(ids, "float32"), rest], axis=-1)
    return ops.reshape(packed, (*shape, 2 * k + 1))
