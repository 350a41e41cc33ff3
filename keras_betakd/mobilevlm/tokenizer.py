"""Llama's tokenizer, which encodes prompts with images as the released models do."""

import re

import keras
import keras_hub

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.mobilevlm.backbone import IMAGE_TOKEN_ID, MobileVLMBackbone

_SPECIAL = re.compile(r"(<s>|</s>|<unk>)")


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMTokenizer(keras_hub.models.LlamaTokenizer):
    """Llama's SentencePiece tokenizer, which MobileVLM V2 and LLaVA-1.5 share.

    Its arguments are those of `keras_hub.models.LlamaTokenizer`: `proto`, the path of a
    SentencePiece file (`tokenizer.model`) or its bytes, and more.

    Example:

    ```python
    tokenizer = MobileVLMTokenizer("MobileVLM_V2-1.7B/tokenizer.model")
    tokenizer.encode_prompt("USER: <image>\\nWhat is this? ASSISTANT:")
    ```
    """

    backbone_cls = MobileVLMBackbone

    def encode_prompt(self, text: str) -> list[int]:
        """The token ids of a prompt, images and special tokens included.

        The pieces of text between `<image>`, `<s>`, `</s>` and `<unk>` are encoded one
        by one, each as a text of its own, so that each begins with a space. The
        released models do the same: they use Hugging Face's slow tokenizer
        (`legacy=True`).

        Args:
            text: a string.

        Returns:
            List of ints: the start token, then the pieces, with one `IMAGE_TOKEN_ID`
            for each `<image>`.
        """
        special = {
            "<s>": self.start_token_id,
            "</s>": self.end_token_id,
            "<unk>": self.token_to_id("<unk>"),
        }
        ids = [self.start_token_id]
        for i, chunk in enumerate(text.split(IMAGE_MARK)):
            if i:
                ids.append(IMAGE_TOKEN_ID)
            for piece in filter(None, _SPECIAL.split(chunk)):
                if piece in special:
                    ids.append(special[piece])
                else:
                    ids.extend(int(token) for token in self.tokenize([piece])[0])
        return ids
