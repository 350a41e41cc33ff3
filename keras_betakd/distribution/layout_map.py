"""`layout_map`: spreads the weights of teacher and student over accelerators."""

import keras

_BLOCK = r".*(decoder_block|transformer_layer)_\d+"
# Patterns of the paths of weights in keras-hub's language models, and what each of the
# weight's axes is spread over: "m" for the model axis of the mesh, "b" for its batch
# axis if `batch_axis` is given, "-" for neither.
_RULES = (
    # The vocabulary, (V, H) or (H, V), which spreads the head's logits by class.
    (r".*(token_embedding|embed_tokens\w*/embedding)/embeddings", "mb"),
    (r".*token_embedding/reverse_embeddings", "bm"),
    (r".*lm_head/kernel", "bm"),
    # Attention, by heads. Grouped keys and values are small and are not spread.
    (r".*decoder_block_\d+/attention/query/kernel", "mb-"),
    (r".*transformer_layer_\d+/(self_)?attention/query/kernel", "bm-"),
    (_BLOCK + r"/(self_)?attention/attention_output/kernel", "m-b"),
    # The feed-forward layers, by their hidden units.
    (_BLOCK + r"/(mlp/)?(ffw_gating|ffw_gating_2|gate_proj|up_proj)/kernel", "bm"),
    (_BLOCK + r"/feedforward_(gate|intermediate)_dense/kernel", "bm"),
    (_BLOCK + r"/(mlp/)?(ffw_linear|down_proj|feedforward_output_dense)/kernel", "mb"),
)


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    model_axis: str = "model",
    batch_axis: str | None = None,
) -> keras.distribution.LayoutMap:
    """The layout of a teacher and a student for `keras.distribution.ModelParallel`.

    Spreads the large weights of keras-hub's language models over the model axis: the
    vocabulary (by class, so that the fused head holds logits of 1/M of the classes on
    each of M devices), the queries and outputs of attention (by head) and the
    feed-forward layers (by hidden unit). The same paths apply to both models, and to
    the optimizer's slots. Vision towers, keys and values, norms and betas are copied to
    every device of the axis.

    Args:
        device_mesh: a `keras.distribution.DeviceMesh`.
        model_axis: the name of its axis for the weights.
        batch_axis: the name of its axis for the batch, to spread these weights over
            that axis, too: they are gathered where they are used, which costs time and
            saves memory (as in FSDP). `None`, the default, keeps a copy on each of its
            devices.

    Returns:
        A `keras.distribution.LayoutMap`, whose keys are patterns of weights' paths. Add
        entries for weights of other models, and delete an entry whose sizes do not
        divide by the axis: JAX raises when the model is created.

    Raises:
        ValueError: if the mesh does not have an axis of that name.

    Example:

    ```python
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=keras_betakd.layout_map(mesh))
    )
    teacher = keras_hub.models.CausalLM.from_preset("gemma3_instruct_12b")
    ```
    """
    for axis in {model_axis, batch_axis} - {None}:
        if axis not in device_mesh.axis_names:
            raise ValueError(
                f"The mesh has no axis {axis!r}. Expected one of "
                f"{device_mesh.axis_names}. Received: model_axis={model_axis!r}, "
                f"batch_axis={batch_axis!r}"
            )
    names = {"m": model_axis, "b": batch_axis, "-": None}
    layouts = keras.distribution.LayoutMap(device_mesh)
    for pattern, axes in _RULES:
        layouts[pattern] = tuple(names[axis] for axis in axes)
    return layouts
