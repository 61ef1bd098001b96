"""The configs, installed as ret_lightning.conf."""
