"""`QwenFormat`: records for Qwen's models with vision, whose images have any size."""

import functools

import numpy as np

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.byte_pairs import encode
from keras_betakd.preprocessing.chat_packing import packed_chats
from keras_betakd.preprocessing.chat_tokens import chat_tokens
from keras_betakd.preprocessing.text_format import TextFormat, packed, start_ids


class QwenFormat(TextFormat):
    """Images of any shape, whose number of tokens depends on their size; a base class.

    The numbers of patches and of images are padded to a power of two, so that a step is
    compiled for few shapes. `image_sources`, (B, T), is the number of the image token
    at each position, -1 for text. `position_ids`, (B, A, T), are the rotary positions
    of Qwen's M-RoPE on A axes.

    Attributes:
        axes: which of the temporal axis, the rows and the columns, 0 to 2, each of the
            A axes holds.
    """

    image_keys = ("pixel_values", "image_grid_thw")
    decodes_cached = False
    chat_form = "ids"
    axes: tuple[int, ...] = (0, 1, 2)

    @property
    def _patch_shape(self):
        """The shape of a patch in the model's inputs."""
        raise NotImplementedError

    def _converted(self, image):
        """`(patches, grid)` of a uint8 image.

        Patches are (P, *_patch_shape), those of an image token next to each other; the
        grid is (1, rows, columns) of them.
        """
        raise NotImplementedError

    def _grid(self, image):
        """The grid of `_converted` alone."""
        return self._converted(image)[1]

    def _bucket(self, number, least=1):
        """What a number of patches or images is padded to: `least` doubled enough."""
        size = least
        while size < number:
            size *= 2
        return size

    def prompt_lengths(self, inputs, limit):
        if "chats" in inputs:
            return {self.answer_length: [len(c.ids) for c in self.chat_tokens(inputs)]}
        images = inputs.get("images", [[] for _ in inputs["prompts"]])
        rows = zip(inputs["prompts"], images, strict=True)
        grids = [(p, [self._tokens(self._grid(i)) for i in r]) for p, r in rows]
        ids = [self._tokenized(p, row) for p, row in grids]
        start = len(start_ids(self.preprocessor))
        return {self.answer_length: [len(row) + start for row in ids]}

    @property
    def mark(self):
        return self.preprocessor.tokenizer.image_token

    @property
    def _marks(self):
        """The image token between the tokens that it is trained with."""
        tokenizer = self.preprocessor.tokenizer
        return tokenizer.vision_start_token + self.mark + tokenizer.vision_end_token

    @property
    def mark_text(self):
        return self._marks if self._takes_images else IMAGE_MARK

    @property
    def own_marks(self):
        return (self._marks, self.mark) if self._takes_images else ()

    def token_ids(self, text):
        return self._tokenized(text, [])

    @property
    def _takes_images(self):
        return self.preprocessor.image_converter is not None

    def prepared(self, prompts, images, ids):
        if not self._takes_images:
            return super().prepared(prompts, images, ids)
        prompts = [p.replace(IMAGE_MARK, self._marks) for p in prompts]
        image_inputs.check_marks(prompts, images, self.mark, None, ids)
        return {"prompts": prompts, "images": images}

    def prompts_alone(self, inputs, sequence_length):
        """Model inputs of the prompts without answers, padded to `sequence_length`."""
        if "chats" in inputs:
            return self.training(inputs, sequence_length)[0]
        empty = {**inputs, "responses": [""] * len(inputs["prompts"])}
        x, _, weight = self.training(empty, sequence_length)
        # Without the end mark of the empty answer: the model has to predict it.
        lengths = self.prompt_lengths(inputs, sequence_length)[self.answer_length]
        mask = np.arange(weight.shape[1])[None] < np.array(lengths)[:, None]
        padding = self.preprocessor.tokenizer.pad_token_id
        tokens = np.where(mask, x["token_ids"], padding)
        return {**x, "token_ids": tokens, "padding_mask": mask}

    def training(self, inputs, sequence_length=None):
        parts = [[self._converted(i) for i in row] for row in inputs.get("images", [])]
        parts = parts or [[] for _ in inputs["prompts"]]
        tokens = [[self._tokens(grid) for _, grid in row] for row in parts]
        if "chats" in inputs:
            chats = self._chat_tokens(inputs["chats"], tokens)
            x, y, weight = packed_chats(self.preprocessor, chats, sequence_length)
        else:
            prompts = zip(inputs["prompts"], tokens, strict=True)
            prompts = [self._tokenized(*pair) for pair in prompts]
            responses = [self._tokenized(text, []) for text in inputs["responses"]]
            pair = prompts, responses
            x, y, weight = packed(self.preprocessor, *pair, sequence_length)
        if self._takes_images:
            x.update(self._stacked(parts), **self._places(x["token_ids"], parts))
        return x, y, weight

    def chat_tokens(self, inputs):
        images = inputs.get("images", [[] for _ in inputs["chats"]])
        grids = [[self._tokens(self._grid(i)) for i in row] for row in images]
        return self._chat_tokens(inputs["chats"], grids)

    def _chat_tokens(self, chats, grids):
        """The `ChatTokens` of chats, with one image token for each of their images'."""
        found = []
        for chat, row in zip(chats, grids, strict=True):
            counts = iter([rows * columns for rows, columns in row])
            tokenize = functools.partial(self._with_images, counts=counts)
            found.append(chat_tokens(chat, self.preprocessor.tokenizer, tokenize))
        return found

    @property
    def _merge(self):
        return self.preprocessor.image_converter.spatial_merge_size

    def _tokens(self, grid):
        """The rows and columns of the tokens of an image, from its grid of patches."""
        return grid[1] // self._merge, grid[2] // self._merge

    def _tokenized(self, text, grids):
        """The token ids of a text, with one image token for each token of its images.

        Args:
            text: a prompt or response.
            grids: rows and columns of the tokens of each image, in order.
        """
        return self._with_images(text, iter([r * c for r, c in grids]))

    def _with_images(self, text, counts):
        """`_tokenized` with the numbers of tokens of the images, an iterator."""
        tokenizer = self.preprocessor.tokenizer
        image = getattr(tokenizer, "image_token_id", None)
        ids = []
        for token in encode(tokenizer, text):
            ids += [token] * (next(counts, 1) if token == image else 1)
        return ids

    def _patches(self, parts):
        """The number of patches that each image of a batch is padded to."""
        sizes = [len(patches) for row in parts for patches, _ in row]
        return self._bucket(max(sizes, default=1), least=self._merge**2)

    def _stacked(self, parts):
        """The patches and grids of all images, padded: dict of two arrays."""
        count, size = self._bucket(max(map(len, parts))), self._patches(parts)
        shape = (len(parts), count, size, *self._patch_shape)
        values = np.zeros(shape, dtype="float32")
        grids = np.zeros((len(parts), count, 3), dtype="int32")
        for i, row in enumerate(parts):
            for j, (patches, grid) in enumerate(row):
                values[i, j, : len(patches)] = patches
                grids[i, j] = grid
        return {"pixel_values": values, "image_grid_thw": grids}

    def _places(self, token_ids, parts):
        """The number of the image token at each position, and the M-RoPE positions."""
        slots = self._patches(parts) // self._merge**2
        image = self.preprocessor.tokenizer.image_token_id
        sources = np.full(token_ids.shape, -1, dtype="int32")
        length, axes = token_ids.shape[1], list(self.axes)
        positions = np.zeros((len(token_ids), len(axes), length), dtype="int32")
        for i, row in enumerate(parts):
            grids = [self._tokens(grid) for _, grid in row]
            numbers = [np.arange(r * c) + j * slots for j, (r, c) in enumerate(grids)]
            numbers = np.concatenate([*numbers, np.zeros(0, "int32")])
            where = np.flatnonzero(token_ids[i] == image)[: len(numbers)]
            sources[i, where] = numbers[: len(where)]
            positions[i] = rope_positions(token_ids[i] == image, grids)[axes]
        return {"image_sources": sources, "position_ids": positions}


def rope_positions(is_image, grids):
    """The M-RoPE positions, (3, T), of one sequence: time, row and column.

    A text token has the same position on all axes, one more than the last. An image
    begins where a text token would: with start s, its token in row r and column c is at
    (s, s + r, s + c). It advances the position by the longer side of its grid.

    Args:
        is_image: (T,) bool, true for image tokens.
        grids: rows and columns of the tokens of each image, in order.

    Example:

    >>> rope_positions(np.array([False, True, True, False]), [(1, 2)]).tolist()
    [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]

    Source: `get_rope_index` of Qwen2-VL in `transformers`.
    """
    length = len(is_image)
    positions = np.zeros((3, length), dtype="int32")
    grids = iter(grids)
    place = start = 0
    while place < length:
        grid = next(grids, None) if is_image[place] else None
        if grid is None:
            positions[:, place] = start
            place, start = place + 1, start + 1
            continue
        rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
        end = min(place + len(rows), length)
        axes = np.stack([np.zeros_like(rows), rows, columns])
        positions[:, place:end] = start + axes[:, : end - place]
        place, start = end, start + max(grid)
    return positions
