"""What the product costs, and what it did on nano: a script a question."""

import runs  # noqa: F401 - before torch: it says how its threads wait
