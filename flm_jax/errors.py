"""The exception that means "the user can fix this": tools print it and exit with code 2."""


class UserError(Exception):
    """A mistake in a config, path, file, checkpoint, tokenizer, prompt or flag.

    The message is one clear sentence with the offending value and the remedy. Command-line tools
    print it without a traceback and exit with code 2; in Python it is raised as it is.
    """
