"""What a model gives: logits or rows, hidden states, and features."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Features:
    """What was read; `None` where it was not wanted.

    Attributes:
        hidden_states: (B, K, H), at the answer rows.
        image_features: (B, P, T, H), as the projector hands them on.
        image_hidden_states: (B, P, T, H), after the last decoder block.
        attention: (B, K, P, T), of the answer rows to the image tokens in the first
            decoder block, averaged over heads.
        saliency: (B, P, T), the same for the mean over all text rows.
        present: (B, P), false where a record has fewer pictures.
    """

    hidden_states: Any = None
    image_features: Any = None
    image_hidden_states: Any = None
    attention: Any = None
    saliency: Any = None
    present: Any = None
