"""Built-in passes: every module here holds one rewrite."""
