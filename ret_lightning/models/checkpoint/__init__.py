"""Model checkpoints: loading and saving in the published layout, fingerprints, and upload to the hub."""
