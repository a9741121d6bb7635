"""Step 3.5 Flash: what concerns text is Step 3.7 Flash. transformers knows it as a part of that
model alone."""

from ggext.converters.step3p7 import Step3p7

FAMILY = Step3p7
