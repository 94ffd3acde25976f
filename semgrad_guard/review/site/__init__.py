"""The page and the API on which reviewers and programs use the queue; needs the extra `review`."""
