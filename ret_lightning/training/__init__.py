"""Training: the LightningModule and the learning rate; callbacks and checkpoints have packages of their own."""
