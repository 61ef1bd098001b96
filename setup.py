"""The packages of the wheel: those that are found, and `conf/` as `ret_lightning.conf`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["ret_lightning*"]), "ret_lightning.conf"])
