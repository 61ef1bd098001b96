"""Training: the LightningModule, the schedule, the callbacks, and the course of a run."""
