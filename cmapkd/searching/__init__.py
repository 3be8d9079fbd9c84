"""Parts of `cmapkd search` (cmapkd/search.py): the folder, the models, their embeddings, the page and its server."""
