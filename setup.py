"""The packages of the wheel: those that are found, and `conf/` as `ret_lightning.conf`. All else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

conf = ["ret_lightning.conf", *(f"ret_lightning.conf.{name}" for name in find_namespace_packages("conf"))]
setup(packages=[*find_packages(include=["ret_lightning*"]), *conf])
