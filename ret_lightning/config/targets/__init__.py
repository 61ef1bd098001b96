"""Names of `_target_`s and their keys: allowed targets, names of earlier versions, packages of the user."""
