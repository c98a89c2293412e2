"""Cases held out: failures that others reported in public, and sound models that look like them.

They were written after the rules of pytest-fp16 were, from threads of public issue trackers (each
docstring names the project), with new models on other data; nothing is copied. Labels were given
by analysis and confirmed by `benchmarks.cases.judge` before the tool first saw a case.
`benchmarks/README.md` says how the first look went and what was mended after it.
"""

from benchmarks.cases import (
    reported_attention,
    reported_configured,
    reported_decays,
    reported_decisions,
    reported_detectors,
    reported_digits,
    reported_forms,
    reported_generators,
    reported_idioms,
    reported_layers,
    reported_lengths,
    reported_matches,
    reported_mismatched,
    reported_more,
    reported_oddities,
    reported_programs,
    reported_quantities,
    reported_range,
    reported_rankings,
    reported_readings,
    reported_scenes,
    reported_sequences,
    reported_several,
    reported_signals,
    reported_sound,
    reported_traps,
    reported_unusual,
    reported_vectors,
)

__all__ = [
    "reported_attention",
    "reported_configured",
    "reported_decays",
    "reported_decisions",
    "reported_detectors",
    "reported_digits",
    "reported_forms",
    "reported_generators",
    "reported_idioms",
    "reported_layers",
    "reported_lengths",
    "reported_matches",
    "reported_mismatched",
    "reported_more",
    "reported_oddities",
    "reported_programs",
    "reported_quantities",
    "reported_range",
    "reported_rankings",
    "reported_readings",
    "reported_scenes",
    "reported_sequences",
    "reported_several",
    "reported_signals",
    "reported_sound",
    "reported_traps",
    "reported_unusual",
    "reported_vectors",
]
