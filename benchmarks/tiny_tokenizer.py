"""A SentencePiece model with the special pieces of Gemma 3, trained on the spot."""

import functools
import io

PIECES = (
    *("<start_of_image>", "<img>", "<end_of_image>"),
    *("<start_of_turn>", "<end_of_turn>", "[multimodal]"),
)


@functools.cache
def tokenizer_proto(texts):
    """The model of a tuple of texts, as bytes."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=list(PIECES),
        minloglevel=2,
    )
    return model.getvalue()
