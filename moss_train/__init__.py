"""moss_train: end-to-end training of dialogue models of the MOSS family under DeepSpeed.

Importing this package is cheap on purpose: torch, DeepSpeed and transformers are loaded by the modules which use them, so that the command
line answers, and a wrong configuration is refused, in a fraction of a second.
"""

__version__ = "0.1.0"
