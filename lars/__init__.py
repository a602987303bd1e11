"""LARS for JAX: layerwise adaptive rate scaling as an Optax transformation.

The names below need jax and optax only. Models, data, training, results and plots are
sub-modules that are imported by name.
"""

from lars.norms import l2_norm as l2_norm
from lars.optimizer import (
    ScaleByLarsState as ScaleByLarsState,
    lars as lars,
    scale_by_lars as scale_by_lars,
    trust_ratios as trust_ratios,
)
