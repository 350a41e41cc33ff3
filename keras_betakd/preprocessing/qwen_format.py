"""The record format of Qwen3.5, whose keras-hub preprocessor trains on text only."""

import functools
import re

import keras
import numpy as np

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.chat_packing import packed_chats
from keras_betakd.preprocessing.chat_tokens import chat_tokens
from keras_betakd.preprocessing.text_format import TextFormat, packed

SPECIAL = ("im_start", "end", "vision_start", "vision_end", "image", "video")


class Qwen3_5Format(TextFormat):
    """Images of any shape, whose number of tokens depends on their size.

    The numbers of patches and of images are padded to a power of two, so that a step is
    compiled for few shapes. `image_sources`, (B, T), is the number of the image token
    at each position, -1 for text. `position_ids`, (B, 4, T), are the three-axis rotary
    positions of Qwen's M-RoPE, with the temporal one first and second.
    """

    image_keys = ("pixel_values", "image_grid_thw")
    decodes_cached = False
    chat_form = "ids"

    def prompt_lengths(self, inputs, limit):
        if "chats" in inputs:
            return {self.answer_length: [len(c.ids) for c in self.chat_tokens(inputs)]}
        images = inputs.get("images", [[] for _ in inputs["prompts"]])
        rows = zip(inputs["prompts"], images, strict=True)
        grids = [(p, [self._converted(i)[1] for i in found]) for p, found in rows]
        ids = [self._tokenized(p, [self._tokens(g) for g in row]) for p, row in grids]
        start = int(self.preprocessor.add_start_token)
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
        grids = [[self._tokens(self._converted(i)[1]) for i in row] for row in images]
        return self._chat_tokens(inputs["chats"], grids)

    def _chat_tokens(self, chats, grids):
        """The `ChatTokens` of chats, with one image token for each of their images'."""
        found = []
        for chat, row in zip(chats, grids, strict=True):
            counts = iter([rows * columns for rows, columns in row])
            tokenize = functools.partial(self._with_images, counts=counts)
            found.append(chat_tokens(chat, self.preprocessor.tokenizer, tokenize))
        return found

    def _converted(self, image):
        found = image_inputs.converted(image, self.preprocessor.image_converter)
        return found["patches"], tuple(int(n) for n in found["grid_thw"])

    @property
    def _merge(self):
        return self.preprocessor.image_converter.spatial_merge_size

    def _tokens(self, grid):
        """The rows and columns of the tokens of an image, from its grid of patches."""
        return grid[1] // self._merge, grid[2] // self._merge

    def _tokenized(self, text, grids):
        """The token ids of a text, with one image token for each token of its images.

        Special tokens are looked up: a byte-pair tokenizer would split them.

        Args:
            text: a prompt or response.
            grids: rows and columns of the tokens of each image, in order.
        """
        return self._with_images(text, iter([r * c for r, c in grids]))

    def _with_images(self, text, counts):
        """`_tokenized` with the numbers of tokens of the images, an iterator."""
        tokenizer = self.preprocessor.tokenizer
        names = [f"{name}_token" for name in SPECIAL]
        names = [name for name in names if getattr(tokenizer, name, None)]
        special = {getattr(tokenizer, n): getattr(tokenizer, f"{n}_id") for n in names}
        pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
        ids = []
        for piece in filter(None, pieces):
            if piece == getattr(tokenizer, "image_token", None):
                ids += [special[piece]] * next(counts, 1)
            elif piece in special:
                ids.append(special[piece])
            else:
                ids += keras.ops.convert_to_numpy(tokenizer(piece)).tolist()
        return ids

    def _patches(self, parts):
        """The number of patches that each image of a batch is padded to."""
        sizes = [len(patches) for row in parts for patches, _ in row]
        return _power_of_two(max(sizes, default=1), least=self._merge**2)

    def _stacked(self, parts):
        """The patches and grids of all images, padded: dict of two arrays."""
        count, size = _power_of_two(max(map(len, parts))), self._patches(parts)
        converter = self.preprocessor.image_converter
        patch = (converter.temporal_patch_size, *[converter.patch_size] * 2, 3)
        values = np.zeros((len(parts), count, size, *patch), dtype="float32")
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
        positions = np.zeros((len(token_ids), 4, token_ids.shape[1]), dtype="int32")
        for i, row in enumerate(parts):
            grids = [self._tokens(grid) for _, grid in row]
            numbers = [np.arange(r * c) + j * slots for j, (r, c) in enumerate(grids)]
            numbers = np.concatenate([*numbers, np.zeros(0, "int32")])
            where = np.flatnonzero(token_ids[i] == image)[: len(numbers)]
            sources[i, where] = numbers[: len(where)]
            positions[i] = _rope_positions(token_ids[i] == image, grids)
        return {"image_sources": sources, "position_ids": positions}


def _rope_positions(is_image, grids):
    """The M-RoPE positions, (4, T), of one sequence.

    An image advances the position by the longer side of its grid.

    Args:
        is_image: (T,) bool, true for image tokens.
        grids: rows and columns of the tokens of each image, in order.
    """
    length = len(is_image)
    positions = np.zeros((4, length), dtype="int32")
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
        axes = np.stack([np.zeros_like(rows), np.zeros_like(rows), rows, columns])
        positions[:, place:end] = start + axes[:, : end - place]
        place, start = end, start + max(grid)
    return positions


def _power_of_two(number, least=1):
    """`least` doubled until it is at least `number`."""
    size = least
    while size < number:
        size *= 2
    return size
