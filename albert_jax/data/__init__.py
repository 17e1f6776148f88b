"""Host-side data code: text to token ids to batches of numpy arrays.  Does not use jax.

Text, files, settings and vocabularies that cannot be used raise `config.InputError`: one line that names the field, or the
file and line, and says what to do.
"""
