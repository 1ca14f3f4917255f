"""What users train instead of a concept, in the same ComfyUI, on the same pictures and captions.

Every one has a knob of its strength, learns at least as long as Perfusion does here (`lab.json` has
the seconds), and has its rate from `rates.json`. `make lab ARGS=--tune` chooses rates on a concept
that the lab does not measure; what it leaves, `lab_rates.json`, belongs there.
"""

from .lora import Lora
from .textual_inversion import TextualInversion
from .weights import DreamBooth, KeysAndValues

RIVALS = (TextualInversion, Lora, KeysAndValues, DreamBooth)

__all__ = ["RIVALS", "DreamBooth", "KeysAndValues", "Lora", "TextualInversion"]
