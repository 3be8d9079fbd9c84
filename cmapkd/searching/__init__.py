"""Parts of `cmapkd search` (cmapkd/search.py): the folder, the models, their embeddings, the page and its server."""

MOST = 100  # pictures of an answer
