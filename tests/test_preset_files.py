"""Preset folders of keras-hub: what is read from them is checked before it is used."""

import json
import math
import shutil
import time

import h5py
import numpy as np
import pytest
from tiny_families import FAMILIES
from tiny_models import tiny_gemma_text

from keras_betakd.models import load_model
from keras_betakd.models.preset_files import check_preset

HUGE = 2 * 10**9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a preset that loads."""
    folder = tmp_path_factory.mktemp("preset") / "gemma"
    tiny_gemma_text().save_to_preset(str(folder))
    return folder


@pytest.fixture
def preset(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "gemma")


def change(folder, edit, name="config.json"):
    path = folder / name
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def backbone(**values):
    """A change of the backbone's settings, in both files that hold them."""

    def edit(folder):
        change(folder, lambda found: found["config"].update(values))
        change(
            folder,
            lambda found: found["config"]["backbone"]["config"].update(values),
            "task.json",
        )

    return edit


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_of_all_families_are_accepted(name, tmp_path):
    FAMILIES[name]().save_to_preset(str(tmp_path))
    check_preset(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"vocabulary_size": HUGE}, "wrong vocabulary_size.*no size over"),
        ({"num_layers": 10**5}, "wrong num_layers.*with .* tensors"),
        ({"hidden_dim": HUGE}, "wrong hidden_dim"),
        ({"intermediate_dim": HUGE}, "wrong intermediate_dim"),
        ({"head_dim": 10**400}, "wrong head_dim"),
        ({"num_query_heads": HUGE}, "wrong num_query_heads"),
        ({"num_layers": -1}, "wrong num_layers.*1 or more"),
        ({"num_layers": True}, "wrong num_layers"),
        ({"num_layers": "1"}, "wrong num_layers"),
        ({"num_layers": 1.0}, "wrong num_layers"),
        ({"hidden_dim": 0}, "wrong hidden_dim"),
        ({"intermediate_dim": -16}, "wrong intermediate_dim"),
        ({"sliding_window_size": -1}, "wrong sliding_window_size"),
        ({"layer_norm_epsilon": math.nan}, "wrong layer_norm_epsilon"),
        ({"layer_norm_epsilon": -1e-6}, "wrong layer_norm_epsilon"),
        ({"layer_norm_epsilon": math.inf}, "wrong layer_norm_epsilon"),
        ({"layer_norm_epsilon": "1e-6"}, "wrong layer_norm_epsilon"),
        ({"dropout": -0.5}, "wrong dropout"),
        ({"rope_max_wavelength": -1}, "wrong rope_max_wavelength"),
        ({"final_logit_soft_cap": math.nan}, "wrong final_logit_soft_cap"),
        ({"final_logit_soft_cap": -1.0}, "wrong final_logit_soft_cap"),
        ({"attention_logit_soft_cap": {"a": 1}}, "wrong attention_logit_soft_cap"),
    ],
)
def test_sizes_and_ranges_before_a_model_is_made(values, message, preset):
    """100,000 layers were built for ever; negative numbers and NaN loaded."""
    backbone(**values)(preset)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_model(str(preset))
    assert str(preset) in str(caught.value)
    assert time.monotonic() - start < 5


def test_sizes_that_each_stand_in_the_file_but_not_together(preset):
    backbone(num_layers=9, hidden_dim=40, intermediate_dim=600)(preset)
    with pytest.raises(ValueError, match="num_layers x hidden_dim x intermediate_dim"):
        load_model(str(preset))


@pytest.mark.parametrize("name", ["config.json", "task.json", "preprocessor.json"])
@pytest.mark.parametrize("content", ["[]", "null", "5", '{"a"', "[" * 10**6, "\xff"])
def test_files_that_are_no_json_objects(content, name, preset):
    (preset / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"'.*{name}' is damaged"):
        load_model(str(preset))


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found.update(config=None),
        lambda found: found.update(config=[]),
        lambda found: found.update(registered_name=5),
        lambda found: found.clear() or found.update(config=[], model_type=["a"]),
        lambda found: found.update(registered_name="no>Such"),
        lambda found: found["config"].update(dtype=5),
        lambda found: found["config"].update(dtype={"config": "mixed"}),
        lambda found: found["config"].pop("num_layers"),
    ],
)
def test_other_damage_ends_in_the_documented_error(edit, preset):
    change(preset, edit)
    (preset / "task.json").unlink()
    with pytest.raises(ValueError, match="gemma"):
        load_model(str(preset))


@pytest.mark.parametrize("name", ["Tokenizer", "Backbone", "__doc__", 5, None, ["a"]])
def test_a_task_of_another_class_is_no_model(name, preset):
    """`class_name` "Tokenizer" gave a tokenizer instead of a model."""
    change(preset, lambda found: found.update(class_name=name), "task.json")
    try:
        model = load_model(str(preset))
    except ValueError as error:
        assert str(preset) in str(error)
    else:
        assert "CausalLM" in type(model).__name__


@pytest.mark.backends
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(value, preset):
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file["layers/reversible_embedding/vars/0"][2, 3] = value
    with pytest.raises(ValueError, match="token_embedding.*holds NaN or infinite"):
        load_model(str(preset))
    load_model(str(preset), load_weights=False)


def test_weights_that_are_cut_short(preset):
    path = preset / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="model.weights.h5' cannot be read"):
        load_model(str(preset))
    load_model(str(preset), load_weights=False)


def sharded(preset):
    """The same preset with its weights in two files, and the path of their index."""
    model = load_model(str(preset))
    (preset / "model.weights.h5").unlink()
    index = preset / "model.weights.json"
    model.backbone.save_weights(str(index), max_shard_size=5.5e-6)
    assert len(list(preset.glob("model_*.weights.h5"))) > 1
    return index


def test_weights_in_several_files(preset):
    index = sharded(preset)
    load_model(str(preset))
    backbone(num_layers=10**5)(preset)
    with pytest.raises(ValueError, match="wrong num_layers"):
        load_model(str(preset))
    assert index.exists()


@pytest.mark.parametrize("name", ["../{}", "{here}/{}", "config.json", "", 5, None])
def test_an_index_names_plain_files_of_its_folder(name, preset):
    index = sharded(preset)
    found = json.loads(index.read_text())
    key, file = next(iter(found["weight_map"].items()))
    file = file[0] if isinstance(file, list) else file
    shutil.copy(preset / file, preset.parent / file)
    wrong = name.format(file, here=preset.parent) if isinstance(name, str) else name
    found["weight_map"][key] = wrong
    index.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="the name of a .h5 file beside it"):
        load_model(str(preset))
