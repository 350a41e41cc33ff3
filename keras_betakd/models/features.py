"""`FeatureReader`: runs a model once and reads its hidden states and features."""

import contextlib
import functools

from keras import ops

from keras_betakd.models.attention import (
    attention_among,
    attention_sum,
    attention_weights,
    kind_and_blocks,
    record_attention,
)
from keras_betakd.models.hooks import recorded
from keras_betakd.models.inner_layers import LayerRecorder
from keras_betakd.models.outputs import Features, ModelOutputs


class FeatureReader:
    """Runs one model and reads the wanted features while it runs.

    Args:
        view: a `CausalLMView`.
        wanted: set of names of `Features`.
        layers: names of inner layers (see `keras_betakd.models.inner_layers`).

    Raises:
        ValueError: attention is wanted of a family whose attention cannot be read, or
            there is no layer of a name.

    Example:

    ```python
    reader = FeatureReader(view, {"image_features"})
    features = reader.outputs(inputs, positions).features
    ```
    """

    def __init__(self, view, wanted, layers=()):
        self.view = view
        self._layers = LayerRecorder(view.model, layers) if layers else None
        self.wanted = set(wanted)
        blocks = {kind_and_blocks(name)[1] or () for name in self.wanted}
        self._blocks = {
            number: attention_layer(view, number) for number in set().union(*blocks)
        }

    @property
    def layers(self):
        """The layers whose calls are recorded."""
        found = [] if self._layers is None else self._layers.layers
        return [*found, *self._blocks.values()]

    def expect_nothing(self):
        """Raises if features are wanted: for a batch without answer positions."""
        if self.wanted:
            raise ValueError(
                f"Features ({', '.join(sorted(self.wanted))}) are compared, so batches "
                "must be in the answer-position form of `DistillationPreprocessor`, "
                "with `student_positions` and `teacher_positions`. Received inputs "
                "without them."
            )

    def outputs(self, inputs, positions, training=False):
        """Runs the model on a batch.

        Args:
            inputs: the model's inputs.
            positions: (B, K), the text positions of the answer rows.
            training: as for any Keras layer.

        Returns:
            `ModelOutputs` with `rows`, `hidden_states`, `padding_mask`, and `features`
            if any are wanted.
        """
        with self.recording():
            hidden = self.view.hidden_states(inputs, training=training)
        where = self.view.row_positions(positions)
        return ModelOutputs(
            rows=_at(hidden, where),
            hidden_states=hidden,
            padding_mask=self.view.padding_mask(inputs),
            features=self.features(inputs, hidden, where),
        )

    def logits(self, inputs, training=None):
        """Runs a plain model: `(logits, features)`, its inner layers as features."""
        self.expect_nothing()
        with self.recording():
            logits = self.view.logits(inputs, training=training)
        if self._layers is None:
            return logits, None
        return logits, Features(layers=self._layers.outputs())

    @contextlib.contextmanager
    def recording(self):
        """Records the layers, while the model runs, whose outputs are wanted."""
        with contextlib.ExitStack() as stack:
            if "image_features" in self.wanted:
                layer = self.view.image_projector()
                self._projected = stack.enter_context(recorded(layer))
            if self._layers is not None:
                stack.enter_context(self._layers.recording())
            self._attention = {
                number: stack.enter_context(record_attention(layer))
                for number, layer in self._blocks.items()
            }
            yield

    def features(self, inputs, hidden, rows):
        """Collects the wanted `Features` after the model has run; `None` without any.

        Args:
            inputs: the model's inputs.
            hidden: (B, T, H), its last hidden states.
            rows: (B, K), the positions of the answer rows in `hidden`.
        """
        if not self.wanted and self._layers is None:
            return None
        found = Features()
        if self._layers is not None:
            found.layers = {
                name: _at(_of_decoder(name, output, hidden), rows)
                for name, output in self._layers.outputs().items()
            }
        if "hidden_states" in self.wanted:
            found.hidden_states = _at(hidden, rows)
        if not self.wanted - {"hidden_states"}:
            return found
        positions, found.present = self.view.image_layout(inputs)
        found.grids = self.view.image_grids(inputs)
        shape = ops.shape(positions)
        flat = ops.reshape(positions, (shape[0], -1))
        if "image_features" in self.wanted:
            found.image_features = self.view.image_features(self._projected[0], inputs)
        if "image_hidden_states" in self.wanted:
            tokens = (*shape, hidden.shape[-1])
            found.image_hidden_states = ops.reshape(_at(hidden, flat), tokens)
        names = [n for n in sorted(self.wanted) if kind_and_blocks(n)[1] is not None]
        if names:
            among = functools.cache(lambda block: self._among(block, positions))
            places = flat, shape, rows, among
            found.attention = {
                n: self._read_attention(n, inputs, *places) for n in names
            }
        return found

    def _read_attention(self, name, inputs, flat, shape, rows, among):
        """One feature of attention at the image tokens, averaged over its blocks."""
        kind, blocks = kind_and_blocks(name)
        if kind == "image_attention":
            found = [among(block) for block in blocks]
        elif kind == "attention":
            found = [self._attention_to(block, flat, shape, rows) for block in blocks]
        else:
            queries = self.view.text_mask(inputs)
            if kind == "prompt_saliency":
                place = ops.arange(ops.shape(queries)[1], dtype=rows.dtype)
                # The first answer row is the last token of the prompt.
                queries = ops.logical_and(queries, place[None] <= rows[:, :1])
            found = [self._attention_from(b, queries, flat, shape) for b in blocks]
        return found[0] if len(found) == 1 else ops.mean(ops.stack(found), axis=0)

    def _recorded(self, block):
        return self._blocks[block], self._attention[block]

    def _among(self, block, positions):
        return attention_among(*self._recorded(block), positions)

    def _attention_from(self, block, queries, flat, shape):
        """The mean over the rows in `queries`, bool (B, T), at the image tokens."""
        weights = ops.cast(queries, "float32")
        count = ops.maximum(ops.sum(weights, axis=1), 1.0)
        mean = attention_sum(*self._recorded(block), weights) / count[:, None]
        return ops.reshape(_pick(mean, flat), shape)

    def _attention_to(self, block, flat, shape, rows):
        weights = attention_weights(*self._recorded(block), rows)
        count = ops.shape(rows)[1]
        where = ops.repeat(flat[:, None], count, axis=1)
        weights = ops.take_along_axis(weights, where, axis=2)
        return ops.reshape(weights, (shape[0], count, *shape[1:]))


def attention_layer(view, number):
    """The self-attention layer of a decoder block, counted from 0, or from the end.

    Raises:
        ValueError: the attention cannot be read, or there is no such block.
    """
    layers = view.attention_layers()
    if not -len(layers) <= number < len(layers):
        raise ValueError(
            f"{type(view.model).__name__} has {len(layers)} decoder blocks, counted "
            f"from 0. Received: block {number}"
        )
    return layers[number]


def _at(hidden, positions):
    return ops.take_along_axis(hidden, positions[:, :, None], axis=1)


def _of_decoder(name, output, hidden):
    """The output of a layer, which must have the positions of the hidden states."""
    sizes = output.shape[:2], hidden.shape[:2]
    if len(output.shape) != 3 or sizes[0][1] != sizes[1][1]:
        raise ValueError(
            f"The layer '{name}' returns {tuple(output.shape)}, which are not the "
            f"positions of the language model, {tuple(hidden.shape)}. Of a CausalLM, "
            "layers are compared at the answer's rows; for its images use "
            'features="image_features" or "image_hidden_states".'
        )
    return output


def _pick(values, positions):
    return ops.take_along_axis(values, positions, axis=1)
