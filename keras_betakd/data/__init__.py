"""Loads images and data sets, and makes batches of raw records for any model."""

from keras_betakd.data.batches import EpochDataset, EpochParts
from keras_betakd.data.images import IMAGE_MARK, load_image, neutralize_image_marks
from keras_betakd.data.llava import LlavaDataset
from keras_betakd.data.llava_files import load_llava
from keras_betakd.data.llava_records import LlavaRecord
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
from keras_betakd.data.vqa import load_vqa, load_vqav2
