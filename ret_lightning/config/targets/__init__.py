"""What a `_target_` and its keys may be called: allowed names, names of earlier versions, packages of the user."""
