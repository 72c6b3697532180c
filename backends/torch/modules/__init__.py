"""transformers' own modules on the paged cache, for families the native decoder does not know."""
