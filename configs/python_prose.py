"""English about programming: the documentation that comes with Python itself, no download.

Command:   python -m flm_jax.main --config=configs/python_prose.py --workdir=runs/python_prose
Hardware:  one GPU, or many CPU cores and patience
Time:      not measured yet
Expected:  not measured yet; the text depends on the Python version, so numbers do too

--config=configs/python_prose.py:characters spells instead of writing pieces of words.
"""

from configs import text_files


def get_config(stage="pretrain"):
    return text_files.small("python_prose", stage)
