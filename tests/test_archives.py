"""Files written at commit c98251b load, and training goes on with the same numbers.

The files hold every energy and every beta (`archive_distiller.py`), the numbers are
what the distiller that wrote them gave (`make_archives.py`).
"""

import json

import numpy as np
import pytest
from archive_distiller import (
    NUMBERS,
    WEIGHTS,
    build_distiller,
    load_archive,
    numbers_of,
)


def from_weights():
    """Builds it from another start, then loads a file that has no teacher."""
    distiller = build_distiller(start=500)
    distiller.load_weights(WEIGHTS)
    return distiller


@pytest.mark.backends
@pytest.mark.parametrize("load", [load_archive, from_weights])
def test_file_of_c98251b_brings_everything_back(load):
    with open(NUMBERS) as file:
        expected = json.load(file)
    numbers = numbers_of(load())
    assert numbers.keys() == expected.keys()
    for when, values in expected.items():
        # The objective is newer than these files.
        assert numbers[when].keys() - {"objective"} == values.keys()
        for name, value in values.items():
            # Float32: backends differ by 5e-7 of a number, by 4e-6 of a small one
            # that is a difference (`relation`); PyTorch by nothing.
            np.testing.assert_allclose(
                numbers[when][name],
                value,
                rtol=1e-5,
                atol=1e-8,
                err_msg=f"{when}: {name}",
            )
