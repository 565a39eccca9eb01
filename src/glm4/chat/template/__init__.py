"""The checkpoint's own chat template, run in a sandbox, with everything a user wrote kept apart from its markers."""
