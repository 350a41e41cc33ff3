"""Loads images and data sets, and makes batches of raw records for any model."""

from keras_betakd.data.batches import EpochDataset, EpochParts
from keras_betakd.data.benchmark_training import load_gqa, load_textvqa
from keras_betakd.data.captions import load_captions
from keras_betakd.data.chat import load_chat
from keras_betakd.data.images import IMAGE_MARK, load_image, neutralize_image_marks
from keras_betakd.data.llava import LlavaDataset
from keras_betakd.data.llava_files import load_llava
from keras_betakd.data.llava_records import LlavaRecord
from keras_betakd.data.mixed import MixedDataset
from keras_betakd.data.scienceqa import (
    LETTER_PROMPT_SUFFIX,
    ScienceQADataset,
    scienceqa_prompt,
    scienceqa_response,
)
from keras_betakd.data.scienceqa_llava import load_scienceqa_llava
from keras_betakd.data.scienceqa_records import (
    ScienceQARecord,
    ScienceQARecords,
    load_scienceqa,
)
from keras_betakd.data.streams import RecordStream
from keras_betakd.data.vqa import load_vqa, load_vqav2

__all__ = [
    "EpochDataset",
    "EpochParts",
    "IMAGE_MARK",
    "LETTER_PROMPT_SUFFIX",
    "LlavaDataset",
    "LlavaRecord",
    "MixedDataset",
    "RecordStream",
    "ScienceQADataset",
    "ScienceQARecord",
    "ScienceQARecords",
    "load_captions",
    "load_chat",
    "load_gqa",
    "load_image",
    "load_llava",
    "load_scienceqa",
    "load_scienceqa_llava",
    "load_textvqa",
    "load_vqa",
    "load_vqav2",
    "neutralize_image_marks",
    "scienceqa_prompt",
    "scienceqa_response",
]
