"""LARS for JAX: layerwise adaptive rate scaling as an Optax transformation.

It needs jax and optax only. `lars.algorithm` has the equations beside their code.
"""

from lars import presets as presets
from lars.description import (
    Description as Description,
    ParameterDescription as ParameterDescription,
    describe as describe,
)
from lars.norms import l2_norm as l2_norm
from lars.optimizer import lars as lars, scale_by_lars as scale_by_lars
from lars.polar_optimizer import PolarState as PolarState, polar as polar
from lars.rules import Selection as Selection, select as select
from lars.spectral import Spectral as Spectral
from lars.state import (
    LarsState as LarsState,
    skipped_steps as skipped_steps,
    trust_ratios as trust_ratios,
)
from lars.waking import (
    WakingState as WakingState,
    wake_silent_layers as wake_silent_layers,
)
