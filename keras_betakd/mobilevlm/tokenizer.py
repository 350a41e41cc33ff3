"""Llama's tokenizer, and prompts with pictures as the released models read them."""

import re

import keras
import keras_hub

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.mobilevlm.backbone import IMAGE_TOKEN_ID, MobileVLMBackbone

_SPECIAL = re.compile(r"(<s>|</s>|<unk>)")


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMTokenizer(keras_hub.models.LlamaTokenizer):
    """Llama's SentencePiece tokenizer, which MobileVLM V2 and LLaVA-1.5 share.

    Args:
        proto: path of a SentencePiece file (`tokenizer.model`), or its bytes.
        **kwargs: as for any `keras_hub.models.LlamaTokenizer`.

    Example:

    ```python
    tokenizer = MobileVLMTokenizer("MobileVLM_V2-1.7B/tokenizer.model")
    tokenizer.encode_prompt("USER: <image>\\nWhat is this? ASSISTANT:")
    ```
    """

    backbone_cls = MobileVLMBackbone

    def encode_prompt(self, text):
        """Token ids of a whole prompt, pictures and special tokens included.

        What stands between `<image>`, `<s>`, `</s>` and `<unk>` is encoded piece by
        piece, each as if it were a text of its own. So do the released models, which
        read prompts with Hugging Face's slow tokenizer (`legacy=True`): after each of
        these marks, a piece begins with a space.

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
