"""Images given by an address: `file:`, `data:`, and others, which are refused."""

import base64
import pathlib

import pytest
from PIL import Image

from keras_betakd.data import load_chat, load_image
from keras_betakd.preprocessing.record_checks import checked_records


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    Image.new("RGB", (6, 4), (220, 30, 30)).save(folder / "1 #.png")
    return folder / "1 #.png"


def chat(place):
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A."},
    ]
    return [{"messages": turns, "images": [place]}]


def data(path, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_addresses_of_this_machine(path):
    pixel = [220, 30, 30]
    for place in (path.as_uri(), f"file://localhost{path.as_uri()[7:]}", data(path)):
        assert load_image(place)[0, 0].tolist() == pixel
        (record,) = load_chat(chat(place))
        assert load_image(record.images[0])[0, 0].tolist() == pixel
        records = {"prompts": ["?"], "images": [place]}
        assert checked_records(records)["images"][0][0][0, 0].tolist() == pixel
    assert isinstance(load_chat(chat(data(path)))[0].images[0], bytes)


def test_an_address_in_a_folder(path):
    (record,) = load_chat(chat(path.as_uri()), path.parent)
    assert pathlib.Path(record.images[0]) == path
    outside = path.parent.parent / "b.png"
    outside.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="Record '0'.*inside `image_folder`"):
        load_chat(chat(outside.as_uri()), path.parent)
    load_chat(chat(data(path)), path.parent)


@pytest.mark.parametrize(
    "place, message",
    [
        ("https://x.org/a.png", "nothing is downloaded.*https://x.org/a.png"),
        ("HTTP://x.org/a.png", "nothing is downloaded"),
        ("s3://bucket/a.png", "nothing is downloaded"),
        ("file://server/a.png", "a file of this machine"),
        ("data:image/png;base64,iVBO*", "the file in base64"),
        ("data:image/png;base64,iVBOR", "the file in base64"),
        ("data:image/png;base64,", "without data"),
        ("data:image/png,abc", "the file in base64"),
        ("data:text/html;base64,aaaa", "the file in base64"),
    ],
)
def test_other_addresses_are_refused(place, message):
    # "There is no image file at this path" was all that was said.
    with pytest.raises(ValueError, match=message):
        load_image(place)
    with pytest.raises(ValueError, match=f"Record '0': .*{message}"):
        load_chat(chat(place))
