"""keras-hub's `generate` for prompts that are token ids, tokenized by their format."""

import contextlib

import keras

from keras_betakd.preprocessing.text_format import cut

# Of Gemma, Gemma 4 and Phi-3, at which keras-hub stops beside the end token.
_ENDS_OF_TURNS = ("<end_of_turn>", "<turn|>", "<|end|>")


def stop_tokens(preprocessor, inputs):
    """The ids of the tokens that end an answer to inputs of `model_inputs`.

    Returns:
        List of ints, those of `end_tokens`.
    """
    chats = inputs.get("chats", ())
    return end_tokens(preprocessor, chats[0].template if chats else None)


def end_tokens(preprocessor, template=None):
    """The ids of the tokens that end an answer to prompts in a template.

    Args:
        preprocessor: a keras-hub preprocessor.
        template: as for `model_inputs`, resolved.

    Returns:
        List of ints: those at which keras-hub stops by itself, and the mark that ends
        an answer in the chat template.
    """
    from keras_betakd.preprocessing.chat_template import ChatTemplate
    from keras_betakd.preprocessing.chat_tokens import end_id, token_id

    tokenizer = preprocessor.tokenizer
    names = ("end_token_id", "end_token2_id")
    found = [getattr(tokenizer, name, None) for name in names]
    found += [token_id(mark, tokenizer) for mark in _ENDS_OF_TURNS]
    found = [token for token in found if token is not None]
    if isinstance(template, ChatTemplate):
        found.append(end_id(template, tokenizer))
    return list(dict.fromkeys(found))


def generated(model, inputs, max_length=None, stop_token_ids="auto", strip_prompt=None):
    """The answers of a keras-hub model to inputs of `model_inputs`, its own `generate`.

    Args:
        model: a keras-hub model with its preprocessor.
        inputs: what `model_inputs` returned, or the prompts and what keras-hub
            `"packed"` of them already.
        max_length, stop_token_ids, strip_prompt: as for the model's `generate`.

    Returns:
        A list of strings.
    """
    from keras_betakd.preprocessing.image_formats import format_of

    family = format_of(model.preprocessor)
    generate = _by_ids if family.gives_ids(inputs) else _by_texts
    return generate(model, family, inputs, max_length, stop_token_ids, strip_prompt)


def _by_texts(model, family, inputs, max_length, stop_token_ids, strip_prompt):
    """Answers to texts that keras-hub packs, or has packed already."""
    options = {"max_length": max_length}
    if "chats" in inputs and isinstance(stop_token_ids, str):  # "auto"
        stop_token_ids = stop_tokens(model.preprocessor, inputs)
    if not isinstance(stop_token_ids, str):
        options["stop_token_ids"] = stop_token_ids
    if strip_prompt:
        options["strip_prompt"] = True
    if "packed" not in inputs:
        return model.generate(family.generation(inputs), **options)
    length = max_length or model.preprocessor.sequence_length
    with _packed_already(model.preprocessor, cut(inputs["packed"], length)):
        return model.generate(list(inputs["prompts"]), **options)


def _by_ids(model, family, inputs, max_length, stop_token_ids, strip_prompt):
    """Answers to token ids, which the family packs."""
    preprocessor = model.preprocessor
    if isinstance(stop_token_ids, str):
        stop_token_ids = stop_tokens(preprocessor, inputs)
    length = max_length or preprocessor.sequence_length
    packed = family.packed_prompts(inputs, length)
    with _without_preprocessor(model):
        # A tuple, which JAX can compile for; keras-hub takes none without an id.
        found = model.generate(
            dict(packed), stop_token_ids=tuple(stop_token_ids or ()) or None
        )
    found = {key: keras.ops.convert_to_numpy(value) for key, value in found.items()}
    if strip_prompt:
        found["padding_mask"] = found["padding_mask"] & ~packed["padding_mask"]
    found = {key: keras.ops.convert_to_tensor(value) for key, value in found.items()}
    return list(preprocessor.generate_postprocess(found))


@contextlib.contextmanager
def _packed_already(preprocessor, packed):
    """A context in which a preprocessor packs any prompts to these arrays."""
    name = "generate_preprocess"
    before = vars(preprocessor).get(name)
    given = {k: keras.ops.convert_to_tensor(v) for k, v in packed.items()}
    setattr(preprocessor, name, lambda x, sequence_length=None: given)
    try:
        yield
    finally:
        if before is None:
            delattr(preprocessor, name)
        else:
            setattr(preprocessor, name, before)


@contextlib.contextmanager
def _without_preprocessor(model):
    """A context in which `model.generate` takes token ids."""
    preprocessor = model.preprocessor
    model.preprocessor = None
    try:
        yield
    finally:
        model.preprocessor = preprocessor
