"""Makes `distil_your_vlm.ipynb` of `distil_your_vlm.py`, with its outputs.

    pip install -e ".[notebook]" && python examples/make_notebook.py

The script is the source of the notebook: change the script, then run this. Cells begin
with `# %%`, those of text with `# %% [markdown]`. A cell that fails ends the run, and
the old notebook stays.
"""

import json
import os
import re

from keras_betakd.files import atomic_write

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "distil_your_vlm.py")
NOTEBOOK = SCRIPT.removesuffix("py") + "ipynb"


def cells_of(text):
    """`(type, source)` of each cell of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    cells = []
    for mark, source in zip(parts[::2], parts[1::2], strict=True):
        source = source.strip("\n")
        if mark.strip() == "[markdown]":
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        cells.append(("markdown" if mark.strip() else "code", source))
    return cells


def notebook_of(cells):
    """A notebook without outputs, as JSON."""
    found = []
    for number, (kind, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = source
        if kind == "code":
            cell.update(execution_count=None, outputs=[])
        found.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main():
    import nbclient
    import nbformat

    with open(SCRIPT) as file:
        notebook = nbformat.from_dict(notebook_of(cells_of(file.read())))
    resources = {"metadata": {"path": os.path.dirname(SCRIPT)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    for cell in notebook.cells:
        # When a cell ran is nothing that readers or a comparison of versions need.
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # What libraries write there, such as the processor's abilities, differs
            # from machine to machine.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    with atomic_write(NOTEBOOK) as draft:
        draft.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
