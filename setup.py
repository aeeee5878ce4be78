"""The packages of the wheel: the library as its folders lie, and the committed records beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hpatlib", "hpatlib.*"]), "hpatlib._evidence"],
    package_dir={"hpatlib._evidence": "evidence"},
)
