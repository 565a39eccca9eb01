"""The checkpoint's own chat template, run in a sandbox, with everything a user wrote kept separate from its markers."""
