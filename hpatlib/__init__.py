"""hpatlib: adversarial robustness in medical imaging, the methods of three documents.

Import the modules you need (``from hpatlib import attacks, spatial``); the package itself imports nothing.
"""

__version__ = "0.1.0"
