"""The bundled model: its scenes, its training, its checkpoint."""

import runs  # noqa: F401 - before torch: it says how its threads wait
