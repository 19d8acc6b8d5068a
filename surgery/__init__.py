"""Find where a language model keeps a fact, change or remove it there, and prove what happened."""

from surgery.adapter import from_peft
from surgery.anatomy import Anatomy
from surgery.certificate import Certificate
from surgery.delta import Delta
from surgery.edit import Edit, Undo
from surgery.errors import FactError, SurgeryError, UnsupportedModel, WrongWeights
from surgery.export import to_hf, to_peft
from surgery.fact import Fact, Neighbour
from surgery.model import Model, load
from surgery.predict import generate, next_tokens, rate
from surgery.preview import preview
from surgery.privacy import redact
from surgery.records import FactsFileError, read_facts, write_facts
from surgery.report import Report
from surgery.shipped import example_facts, invented_facts
from surgery.site import KINDS, Neuron, Site
from surgery.stacking import Stack, merge, stack
from surgery.tokens import Span, as_chat
from surgery.verification import Leak, Thresholds, delta_leak, verify

__version__ = "0.1.0"
__all__ = [
    "KINDS",
    "Anatomy",
    "Certificate",
    "Delta",
    "Edit",
    "Fact",
    "FactError",
    "FactsFileError",
    "Leak",
    "Model",
    "Neighbour",
    "Neuron",
    "Report",
    "Site",
    "Span",
    "Stack",
    "SurgeryError",
    "Thresholds",
    "Undo",
    "UnsupportedModel",
    "WrongWeights",
    "as_chat",
    "delta_leak",
    "example_facts",
    "from_peft",
    "generate",
    "invented_facts",
    "load",
    "merge",
    "next_tokens",
    "preview",
    "rate",
    "read_facts",
    "redact",
    "stack",
    "to_hf",
    "to_peft",
    "verify",
    "write_facts",
]
