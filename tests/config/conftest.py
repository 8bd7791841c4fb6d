"""A config file of a user's."""

import textwrap

import pytest


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file and returns its path as text."""

    def write(text, name="mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write
