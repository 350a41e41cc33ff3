"""keras-hub preprocessors that threads share: built once, some settings changed."""

import threading
import weakref

import keras

from keras_betakd.preprocessing.segment_packer import SegmentPacker

_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def built(preprocessor):
    """The preprocessor, built.

    keras-hub builds one in its first call, and fails where two threads do so at once.

    Args:
        preprocessor: a keras-hub preprocessor.
    """
    with _LOCK:
        if not preprocessor.built:
            preprocessor.build(None)
    return preprocessor


def changed_preprocessor(preprocessor, **changes):
    """A preprocessor like another one, with some arguments of its constructor changed.

    The other one stays as it is, for threads that use it. Both share their layers (the
    tokenizer, converters), but a `MultiSegmentPacker`, which becomes a faster
    `SegmentPacker`. `copy.copy` would write and read a file instead, as Keras
    makes copies, and lose what is not in a config.

    Args:
        preprocessor: a keras-hub preprocessor.
        **changes: arguments of its constructor.

    Example:

    ```python
    unended = changed_preprocessor(model.preprocessor, add_end_token=False)
    ```
    """
    config = preprocessor.get_config()
    layers = {k: getattr(preprocessor, k, None) for k in config}
    layers = {k: v for k, v in layers.items() if isinstance(v, keras.layers.Layer)}
    settings = {**config, **layers, **changes}
    key = repr([(k, id(v) if k in layers else v) for k, v in settings.items()])
    with _LOCK:
        known = _KNOWN.setdefault(preprocessor, {})
        if key not in known:
            known.clear()  # one at a time: settings hardly ever change
            known[key] = _with_fast_packer(_made(type(preprocessor), settings))
        return known[key]


def _made(cls, settings):
    length = settings.get("sequence_length")
    if length is None:
        return cls(**settings)
    # Constructors refuse a length that users may set later, with which records are
    # refused by their ids.
    made = cls(**{**settings, "sequence_length": 2**30})
    made.sequence_length = length
    return made


def _with_fast_packer(preprocessor):
    import keras_hub

    packer = getattr(built(preprocessor), "packer", None)
    if type(packer) is keras_hub.layers.MultiSegmentPacker:
        del preprocessor.packer  # PyTorch lets no other object take a module's place
        preprocessor.packer = SegmentPacker.like(packer)
    return preprocessor
