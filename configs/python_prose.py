"""English about programming: the documentation that comes with Python itself, no download.

Command:   python -m flm_jax.main --config=configs/python_prose.py --workdir=runs/python_prose
Hardware:  one GPU, or many CPU cores and patience
Time:      not measured yet; small: 30 minutes (limit: train.max_minutes)
Expected:  not measured yet; the text depends on the Python version, so numbers do too

--config=configs/python_prose.py:small is for half an hour on a laptop, :characters spells instead
of writing pieces of words; stages and words are those of text_files.py.
"""

from flm_jax.configs import text_files


def get_config(stage="pretrain"):
    return text_files.small("python_prose", stage)
