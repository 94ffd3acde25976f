"""Where a model keeps the meaning of a question: the search for its position t*."""
