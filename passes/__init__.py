"""Built-in passes: one rewrite a module, in packages by subject."""
