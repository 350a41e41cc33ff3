"""Pictures and data sets: raw records as neutral batches, ready for any model."""

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.data.images import load_image
from keras_betakd.data.images import neutralize_image_marks
from keras_betakd.data.scienceqa import LETTER_PROMPT_SUFFIX
from keras_betakd.data.scienceqa import ScienceQADataset
from keras_betakd.data.scienceqa import scienceqa_prompt
from keras_betakd.data.scienceqa import scienceqa_response
from keras_betakd.data.scienceqa_records import ScienceQARecord
from keras_betakd.data.scienceqa_records import ScienceQARecords
from keras_betakd.data.scienceqa_records import load_scienceqa
