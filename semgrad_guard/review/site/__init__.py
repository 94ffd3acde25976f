"""The review site: pages for reviewers and an API for programs; needs the extra `review`."""
